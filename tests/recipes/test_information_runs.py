# SPDX-License-Identifier: Apache-2.0
"""The runs of the information study: which there are, on what they stand, and that finished ones are left alone."""

import importlib.util
from pathlib import Path

import pytest

from ibnorm_hf.common import strict_yaml
from ibnorm_hf.training.keys.recipe import load_recipe

SCRIPT = Path(__file__).parents[2] / "recipes" / "studies" / "information.py"
spec = importlib.util.spec_from_file_location("information_runs", SCRIPT)
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_every_norm_and_seed_stands_on_a_random_and_on_a_pretrained_base(tmp_path):
    planned = list(study.runs(tmp_path))
    assert len(planned) == len({name for name, *_ in planned}) == 2 * (1 + 2 * 5 * 3)
    names = [name for name, *_ in planned]
    assert names.index("llama-base-rmsnorm-1") < names.index("llama-pretrained-ibnorm-l-1")
    keys = {name: given for name, _, given in planned}
    assert "--train_only" not in keys["gpt2-base-layernorm-1"] and "--pretrained" not in keys["gpt2-random-ibnorm-s-3"]
    assert str(tmp_path / "gpt2-base-layernorm-1" / "model") in keys["gpt2-pretrained-ibnorm-s-3"]
    alone = [given for name, given in keys.items() if "base" not in name]
    assert all(given[given.index("--train_only") + 1] == "norms" for given in alone)


def test_a_recipe_without_sizes_takes_a_pretrained_base(tmp_path):
    study.write_recipes(tmp_path)
    recipe = strict_yaml.read_mapping(tmp_path / "llama.yaml")
    assert recipe["learning_rate"] == 3e-3 and not {"model", "model_type", "tokenizer"} & set(recipe)
    loaded = load_recipe(
        tmp_path / "llama.yaml", ["--pretrained", "base", "--norm_type", "ibnorm-t", "--use_cpu", "true"]
    )
    assert loaded.data.tokenizer == "base", "the base's own, so that both read the same blocks"


def test_finished_runs_are_left_alone_and_a_failed_one_is_named(tmp_path, monkeypatch, capsys):
    asked = []

    def command(words):
        asked.append(Path(words[-1]).name)
        return 1 if "ibnorm-s" in words else 0

    monkeypatch.setattr(study, "command", command)
    monkeypatch.setattr("sys.argv", ["information.py", "--out", str(tmp_path)])
    (tmp_path / "llama-base-rmsnorm-1" / "model").mkdir(parents=True)
    (tmp_path / "llama-base-rmsnorm-1" / "model" / "config.json").write_text("{}")
    assert study.main() == 1
    assert len(asked) == 61 and "llama-base-rmsnorm-1" not in asked
    assert "failed: llama-random-ibnorm-s-1, llama-pretrained-ibnorm-s-1" in capsys.readouterr().out
    monkeypatch.setattr(study, "command", lambda words: 130)
    assert study.main() == 130, "a stopped run stops the script"


@pytest.mark.parametrize("host", study.HOSTS)
def test_the_hosts_recipes_are_there(host):
    assert (study.RECIPES / host / "tiny.yaml").is_file()
