# SPDX-License-Identifier: Apache-2.0
"""Run folders as somebody else may hand them over: types, links, aliases, sizes, damage. All ends in sentences.

Everything that reads a run folder without loading weights is called, in this process: 2,000 folders in seconds. The
session's seed is in the message of a failure, and ``IBNORM_TEST_SEED`` takes it back.
"""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.held_out import load_validation_blocks
from ibnorm_hf.common.listing import MANIFEST, write_listing
from ibnorm_hf.common.run import fingerprint, model_folder, verify_model
from ibnorm_hf.evaluation.target import resolve
from ibnorm_hf.hub.card import make_card
from ibnorm_hf.hub.facts import read_facts

pytestmark = pytest.mark.faults("a run folder of somebody else")
CASES = 2000

SHARD = {"file": "validation-0.arrow", "blocks": 2, "bytes": 10, "sha256": "ab" * 32}
FILES: dict[str, Any] = {
    "config.yaml": {"model": {"hidden_size": 16}, "corpus": "embedded", "seed": 1, "bf16": False, "license": "mit"},
    "environment.json": {
        "run_version": 1,
        "versions": {"torch": "2"},
        "hardware": {"cpu_cores": 2},
        "processes": 1,
        "commit": None,
        "seed": 1,
        "command": ["ibnorm-hf", "pretrain"],
    },
    "data.json": {
        "corpus": {"kind": "hub", "name": "a/b", "split": "train", "revision": "c"},
        "documents": 3,
        "fingerprints": {"blocks": "ab" * 12},
        "train": {"tokens": 9, "bytes_per_token": 3.5, "shards": [SHARD]},
        "validation": {"tokens": 9, "bytes_per_token": 3.5, "sha256": "ab" * 32, "shards": [SHARD]},
    },
    "eval/validation.json": {"loss": 4.5, "perplexity": 90.0, "bits_per_byte": 1.5, "tokens_seen": 9, "step": 3},
    "eval/robustness.json": {"corrupted_top1": 0.5},
    "eval/leaderboard.json": {"models": []},
    "metrics.jsonl": {"step": 1, "loss": 5.5, "tokens_per_s": 9.5, "share_over_lambda": {"a": 0.5}},
    "model/config.json": {"architectures": ["IBNormLlamaForCausalLM"], "model_type": "ibnorm_llama"}
    | {"norm_type": "ibnorm-l", "norm_lambda": 4.0},
    "model/conversion.json": {"source": "owner/base"},
    "model/tokenizer.json": {},
    "model/README.md": {"license": "other", "license_name": "some", "base_model": "a/b"},
}


def text_of(name: str, content: Any) -> str:
    if name.endswith((".yaml", ".md")):
        text = yaml.safe_dump(content, allow_unicode=True)
        return text if name.endswith(".yaml") else f"---\n{text}---\n# theirs\n"
    return json.dumps(content) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("fuzz") / "run"
    for name, content in FILES.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text_of(name, content))
    save_file({"a": torch.zeros(2, 2)}, run / "model" / "model.safetensors")
    row = {"level": "subtask", "name": "leaderboard_gpqa_main", "raw": 0.3, "stderr": 0.1, "score": 5.0}
    entry = {"model": "x", "model_sha256": fingerprint([run / "model"]), "average": None, "missing": ["y"]}
    FILES["eval/leaderboard.json"] = {"models": [{**entry, "rows": [{**row, "chance": 0.25, "n": 9}]}]}
    (run / "eval" / "leaderboard.json").write_text(json.dumps(FILES["eval/leaderboard.json"]))
    return run


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "",
    "x",
    "\0",
    "../../x",
    "/etc/passwd",
    "\ud800",
    "a\nb\x1b[31m",
    [],
    {},
]
ODD += [
    [None],
    {"a": {"b": []}},
    "x" * 5000,
    "$(reboot)",
    "{{ 7 * 7 }}",
    [[[[1]]]],
    {"": 1},
    float("nan"),
    float("inf"),
]


def altered(draw: random.Random, tree: Any) -> Any:
    """The value with one place of it holding something else, or gone."""
    if isinstance(tree, dict) and tree and draw.random() < 0.85:
        key = draw.choice(sorted(tree))
        if draw.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: altered(draw, tree[key])}
    if isinstance(tree, list) and tree and draw.random() < 0.7:
        at = draw.randrange(len(tree))
        return [*tree[:at], altered(draw, tree[at]), *tree[at + 1 :]]
    return draw.choice(ODD)


def aliases(draw: random.Random, name: str) -> str:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    other = "a: !!python/object/apply:os.system [true]\n"
    text = draw.choice([bomb, other, f"quoted: '{bomb.splitlines()[1]}'\n", "a: &a [*a]\n"])
    return f"---\n{text}---\n" if name.endswith(".md") else text


def bytes_of(draw: random.Random, name: str) -> bytes:
    """What stands in a damaged file."""
    good = text_of(name, FILES[name]).encode()
    at = draw.randrange(len(good) + 1)
    return draw.choice(
        [
            b"",
            good[:at],
            good[:at] + draw.randbytes(draw.randrange(1, 9)) + good[at + draw.randrange(9) :],
            draw.randbytes(draw.randrange(200)),
            b"[" * draw.choice([40, 3000]),
            b'{"a": ' + b"9" * draw.choice([20, 5000]) + b"}",
            b"\xef\xbb\xbf" + good,
            good * 40,
            b"x: " + b"y" * 300_000,
        ]
    )


def spoil(draw: random.Random, run: Path, name: str) -> None:
    """Do one thing to one file of a run folder."""
    path = run / name
    kind = draw.choice(["types"] * 6 + ["bytes"] * 3 + ["aliases", "link", "folder", "gone"])
    if kind == "types":
        text = text_of(name, altered(draw, FILES[name]))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    elif kind == "bytes":
        path.write_bytes(bytes_of(draw, name))
    elif kind == "aliases":
        path.write_text(aliases(draw, name))
    else:
        path.unlink()
        if kind == "link":
            path.symlink_to(draw.choice(["/etc/passwd", "/nowhere", run.parent, "/dev/zero", path.name]))
        elif kind == "folder":
            path.mkdir()


def readers(run: Path, card: bool = True) -> list[Callable[[], Any]]:
    return [
        # Reads every file of a run but what stands below.
        (lambda: make_card(read_facts(run), "me/one")) if card else (lambda: read_facts(run)),
        lambda: verify_model(model_folder(run)),
        lambda: resolve(str(run)),
        lambda: load_validation_blocks(run, run),
    ]


def test_2000_run_folders_end_in_sentences(folder: Path, session_seed: int):
    seed = session_seed
    draw, refused = random.Random(seed), 0
    slowest = 0.0
    for case in range(CASES):
        name = draw.choice(sorted(FILES))
        if case % 20 == 0:
            write_listing(folder / "model", MANIFEST, {})
        spoil(draw, folder, name)
        started = time.process_time()
        try:
            for read in readers(folder, card=case % 8 == 0):  # a card takes longer than all else
                try:
                    read()
                except UserError as error:
                    refused += 1
                    text = str(error)
                    assert text.isprintable() and len(text) < 3000, f"seed {seed}, case {case}, {name}: {text!r}"
                except Exception as error:
                    raise AssertionError(f"seed {seed}, case {case}, {name}: {error!r}") from error
        finally:
            slowest = max(slowest, time.process_time() - started)
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_text(text_of(name, FILES[name]))
            (folder / "model" / MANIFEST).unlink(missing_ok=True)
    assert refused > CASES / 4, "hardly anything was refused: the folders are no longer read"
    assert slowest < 10, f"seed {seed}: a folder took {slowest:.1f} s of the processor"
    for read in readers(folder)[:-1]:
        read()  # the folder itself is a good one
