# SPDX-License-Identifier: Apache-2.0
"""Every command of the pages and of the recipes' headers that trains something is one that this program takes."""

import re
import shlex
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from ibnorm_hf.cli import main

from ..hosts import HOSTS

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "recipes").rglob("README.md")),
    *sorted((ROOT / "recipes").glob("*/*.yaml")),
]
JOBS = {"pretrain": "pretrain", "finetune": "finetune", "train_vision": "pretrain"}
LAUNCHED = re.compile(r"recipes/(pretrain|finetune|train_vision)\.py (recipes/\S+\.yaml.*)")
CALLED = re.compile(r"^ibnorm-hf (pretrain|finetune) (recipes/\S+\.yaml.*)")


def commands():
    """(job, words) of each command line in a code block of a page or in the comments of a recipe, once."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"\\\n#?\s*", "", text)  # lines that go on
        if page.suffix == ".md":
            text = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
        for line in text.splitlines():
            line = line.lstrip("# ").strip()
            match = LAUNCHED.search(line) or CALLED.search(line)
            if match:
                words = shlex.split(match[2].strip("'"), comments=True)
                found[JOBS[match[1]], tuple(words)] = None
    return list(found)


COMMANDS = commands()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).save_pretrained(folder)
    return folder


def test_there_are_commands_of_every_kind():
    launched = {words[0] for _, words in COMMANDS}
    own = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").glob("*/*.yaml")}
    wanted = {name for name in own if name.split("/")[1] in {*HOSTS, "finetune"}}
    assert wanted <= launched, wanted - launched
    assert {job for job, _ in COMMANDS} == {"pretrain", "finetune"}


@pytest.mark.parametrize("job, words", COMMANDS, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_the_command_is_taken_as_it_stands(job, words, model, tmp_path, monkeypatch, capsys):
    """Nothing is trained here: recipes are planned, which reads neither data nor network."""
    monkeypatch.chdir(ROOT)
    stands_for = {"MODEL": str(model), "converted": str(model), "PATH/fashion-mnist": "digits"}
    stands_for |= dict.fromkeys(("FILE", "some.txt"), str(ROOT / "LICENSE"))
    for word in ("CHATS", "HELD"):
        (tmp_path / f"{word}.jsonl").write_text('{"messages": []}\n')
        stands_for[word] = str(tmp_path / f"{word}.jsonl")
    given = [stands_for.get(word, word) for word in words if word != "--dry_run"]
    assert main([job, *given, "--dry_run"]) == 0
    assert "recipe:" in capsys.readouterr().out
