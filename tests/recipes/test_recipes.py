# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe parses, is complete, and builds the model it names."""

import re
import socket
from pathlib import Path

import pytest

from ibnorm_hf import create_norm, list_norms
from ibnorm_hf.cli import main
from ibnorm_hf.training.keys.files import read_recipe
from ibnorm_hf.training.keys.recipe import load_recipe
from ibnorm_hf.training.model.build import build_config
from ibnorm_hf.training.plan import make_plan

from ..hosts import CAUSAL, recipes

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = recipes(CAUSAL)
# Of models that are published at these sizes: parameters, normalization layers, tokens a step, steps.
PUBLISHED = {
    "llama/tiny": (1_840_256, 9, 1_024, 300),
    "llama/60m": (58_073_600, 17, 131_072, 10_000),
    "llama/130m": (134_105_856, 25, 131_072, 20_000),
    "llama/350m": (367_969_280, 49, 131_072, 60_000),
    "llama/1b": (1_339_082_752, 49, 131_072, 100_000),
    "gpt2/tiny": (1_746_944, 13, 1_024, 300),
    "gpt2/small": (124_439_808, 25, 491_520, 600_000),
    "gpt2/medium": (354_823_168, 49, 491_520, 600_000),
}


def test_the_published_models_have_their_recipes():
    assert set(PUBLISHED) <= set(RECIPES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_plans_the_published_model(name: str):
    parameters, norms, tokens, steps = PUBLISHED[name]
    recipe = load_recipe(ROOT / f"{name}.yaml")
    plan = make_plan(recipe)
    assert plan.parameters == parameters
    assert any(re.match(rf"steps: {steps:,} of [\d,]+ sequences = {tokens:,} tokens ", line) for line in plan.lines)
    width = build_config(recipe).hidden_size
    parts = 1 + build_config(recipe).norm_bias
    assert (
        sum(count for kind, count in plan.groups.no_decay_classes.items() if "IBNorm" in kind) == parts * norms * width
    )


def parameters(name: str, *keys: str) -> int:
    return make_plan(load_recipe(ROOT / f"{name}.yaml", list(keys))).parameters


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_line_says_how_many_parameters_there_are(name: str):
    said = re.search(r"([\d.,]+)(M?) parameters", (ROOT / f"{name}.yaml").read_text().partition("\n")[0])
    assert said, name
    places = len(said[1].partition(".")[2])
    count = parameters(name)
    assert said[1] == (f"{count / 1e6:.{places}f}" if said[2] else f"{count:,}")


# Norms that learn a weight and no more, at that.
PLAIN = [n for n in list_norms() if {k for k, _ in create_norm(n, 8, norm_bias=False).named_parameters()} == {"weight"}]


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("/tiny")])
def test_norm_type_does_not_change_the_parameter_count(name: str):
    assert len(PLAIN) > 5
    assert {parameters(name, "--norm_type", norm) for norm in PLAIN} == {parameters(name)}


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_is_commented_and_the_header_gives_the_command(name: str):
    text = (ROOT / f"{name}.yaml").read_text()
    header = re.split(r"^\w+:", text, maxsplit=1, flags=re.MULTILINE)[0]
    assert f"accelerate launch recipes/pretrain.py recipes/{name}.yaml" in header
    assert "Expected: " in header and "not measured" not in header
    for line in text.splitlines():
        if re.match(r"\s*\w+:", line):
            assert re.search(r"  # .*(default|on the command line)", line), line


@pytest.mark.parametrize("name", ["llama/60m", "gpt2/small"])
def test_dry_run_touches_neither_network_nor_disk(name: str, tmp_path: Path, monkeypatch, capsys):
    def refuse(*words, **keys):
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", str(ROOT / f"{name}.yaml"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert f"{PUBLISHED[name][0]:,} parameters" in out
    assert "no decay: " in out and "IBNorm.weight" in out
    assert not list(tmp_path.iterdir())


def test_schedule_of_the_table():
    for name, steps in (("60m", 10_000), ("130m", 20_000), ("350m", 60_000), ("1b", 100_000)):
        content, _ = read_recipe(ROOT / "llama" / f"{name}.yaml")
        assert content["warmup_steps"] * 10 == steps
        assert content["token_budget"] == steps * 512 * 256  # one epoch, no repeated text
        assert content["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
        assert content["weight_decay"] == 0


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes)).save_pretrained(folder)
    return folder


# Trained parameters of that base: all; norms and rank-16 matrices on q_proj and v_proj; norms.
TRAINED = {"full": 98_624, "lora": 5 * 64 + 2 * 2 * 2 * 64 * 16, "norms": 5 * 64}


def test_the_table_of_fine_tuning_is_complete():
    assert {p.stem for p in (ROOT / "finetune").glob("*.yaml")} == set(TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_fine_tuning_recipes_plan_and_comment_every_key(name: str, base: Path, capsys):
    path = ROOT / "finetune" / f"{name}.yaml"
    plan = make_plan(load_recipe(path, ["--pretrained", str(base)]))
    assert plan.trained == TRAINED[name]
    assert main(["finetune", str(path), "--pretrained", str(base), "--dry_run"]) == 0
    assert ("frozen" in capsys.readouterr().out) == (name != "full")
    text = path.read_text()
    assert f"accelerate launch recipes/finetune.py recipes/finetune/{name}.yaml" in text.split("\n\npretrained")[0]
    for line in text.splitlines():
        if re.match(r"\s*\w+:", line):
            assert re.search(r"  # .{12}", line), line
