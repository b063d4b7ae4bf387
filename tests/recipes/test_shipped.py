# SPDX-License-Identifier: Apache-2.0
"""Recipes with a base, and those that come with the package: found by name, listed, copied."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.keys import files
from ibnorm_hf.training.keys.arguments import ModelArguments, RunArguments
from ibnorm_hf.training.keys.files import copy_recipe, read_recipe, shipped
from ibnorm_hf.training.keys.recipe import Recipe, load_recipe, resolved
from tests.studies.test_packaged import SIZES, SMALL

ROOT = Path(__file__).parents[2] / "recipes"
TRAINED = [name for name in shipped() if name.split("/")[0] not in ("accelerate", "base", "studies")]
# What each recipe said when it stood alone in its file; a recipe that is changed on purpose changes its line. A recipe
# that was written on a base has none.
SAID = json.loads((Path(__file__).parent / "resolved.json").read_text())


# Of this machine or of the version of the record; the last has two names, of which Transformers knows one or the other.
LEFT_OUT = ("output_dir", "identity_version", "activation_checkpointing", "gradient_checkpointing")


def beyond_defaults(recipe: Recipe) -> dict[str, Any]:
    """The resolved keys that are not what nobody would have to say, whichever version of transformers is installed."""
    fields = [f for part in (ModelArguments, type(recipe.data), RunArguments) for f in dataclasses.fields(part)]
    defaults = {f.name: getattr(f.default, "value", f.default) for f in fields}
    kept = {
        key: value
        for key, value in resolved(recipe).items()
        if key not in LEFT_OUT and (key not in defaults or value != defaults[key])
    }
    return json.loads(json.dumps(kept))


@pytest.mark.parametrize("name", SAID)
def test_with_its_base_a_recipe_says_what_it_said_alone(name: str):
    assert beyond_defaults(load_recipe(name)) == SAID[name]


def test_every_recipe_has_a_base():
    assert set(SAID) <= set(TRAINED)
    assert all(files.EXTENDS in files.read_yaml(shipped()[name]) for name in TRAINED)


def test_a_line_that_a_base_says_is_not_repeated():
    for name in TRAINED:
        own = files.read_yaml(shipped()[name])
        base, _ = read_recipe(shipped()[own.pop("extends")])
        repeated = {k for k, v in own.items() if k != "model" and k in base and base[k] == v}
        repeated |= {k for k, v in own.get("model", {}).items() if base.get("model", {}).get(k) == v}
        assert not repeated, f"{name}: {sorted(repeated)}"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_key_replaces_the_bases_and_a_size_replaces_a_size(tmp_path: Path):
    write(
        tmp_path / "low.yaml",
        "model_type: ibnorm_llama\nmodel: {hidden_size: 8, vocab_size: 9}\nseed: 3\nmax_steps: 5\n",
    )
    write(tmp_path / "a" / "mid.yaml", "extends: ../low.yaml\nmodel: {hidden_size: 16}\nseed: 4\n")
    top = write(tmp_path / "a" / "top.yaml", "extends: mid.yaml\nmax_steps: 6\n")
    content, places = read_recipe(top)
    assert content == {
        "model_type": "ibnorm_llama",
        "model": {"hidden_size": 16, "vocab_size": 9},
        "seed": 4,
        "max_steps": 6,
    }
    assert places["max_steps"] == str(top) and places["seed"].endswith("mid.yaml")
    recipe = load_recipe(top, ["--max_steps", "7"])
    assert (recipe.run.max_steps, recipe.run.seed, recipe.sizes["hidden_size"]) == (7, 4, 16)


def test_a_relative_path_in_a_base_is_taken_from_there(tmp_path: Path, monkeypatch):
    write(tmp_path / "data" / "own.txt", "words\n")
    write(tmp_path / "data" / "base.yaml", "model_type: ibnorm_llama\ncorpus: own.txt\n")
    write(tmp_path / "mine" / "top.yaml", "extends: ../data/base.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert Path(load_recipe("mine/top.yaml").data.corpus).resolve() == (tmp_path / "data" / "own.txt").resolve()
    assert load_recipe("mine/top.yaml", ["--corpus", "own.txt"]).data.corpus == "own.txt"


def test_a_mistake_in_a_base_is_named_there(tmp_path: Path):
    base = write(tmp_path / "base.yaml", "learning_rat: 1.0e-3\n")
    top = write(tmp_path / "top.yaml", "extends: base.yaml\n")
    with pytest.raises(UserError, match=rf"^{base}: unknown key 'learning_rat'; did you mean 'learning_rate'"):
        load_recipe(top)


@pytest.mark.parametrize(
    "text, message",
    [
        ("extends: other.yaml\n", "names other.yaml, which is not there"),
        ("extends: llama/tinny\n", "did you mean 'llama/tiny'"),
        ("extends: top.yaml\n", "leads in a circle"),
        ("extends: [a, b]\n", "names one other recipe"),
        ("extends: null\n", "names one other recipe"),
        ("extends: ''\n", "names one other recipe"),
    ],
)
def test_mistakes_of_extends_are_one_sentence(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path / "top.yaml", text))


def test_a_chain_of_bases_has_an_end(tmp_path: Path):
    for i in range(20):
        write(tmp_path / f"{i}.yaml", f"extends: {i + 1}.yaml\n")
    with pytest.raises(UserError, match="over more than 8 files"):
        read_recipe(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["llama/tiny", "llama/tiny.yaml", "recipes/llama/tiny.yaml"])
def test_a_recipe_of_the_package_is_found_by_name_from_anywhere(name: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", name, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "1,840,256 parameters" in out and "runs/llama-tiny-ibnorm-l-seed42" in out
    write(tmp_path / "llama" / "tiny.yaml", "max_steps: wrong\n")  # a file of that path is first
    assert main(["pretrain", name, "--dry_run"]) == (2 if name == "llama/tiny.yaml" else 0)


def test_a_misspelt_name_is_told_the_nearest(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "llama/tinny", "--dry_run"]) == 2
    assert "recipe file llama/tinny does not exist; did you mean llama/tiny?" in capsys.readouterr().err
    assert main(["recipes", "copy", "llama/tinny"]) == 2
    assert "no recipe is called llama/tinny; did you mean 'llama/tiny'?" in capsys.readouterr().err


def test_the_command_lists_what_comes_with_the_package(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert any(line.startswith("llama/tiny ") and "1.84M parameters" in line for line in lines)
    assert {"accelerate/fsdp2", "studies/lambda", "base/text"} <= set(shipped())


def test_a_copy_is_the_file_and_works_where_it_was_put(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "llama/60m"]) == 0
    assert capsys.readouterr().out.strip() == "60m.yaml"
    assert Path("60m.yaml").read_bytes() == (ROOT / "llama" / "60m.yaml").read_bytes()
    assert load_recipe("60m.yaml").data.corpus == "allenai/c4"
    assert main(["recipes", "copy", "llama/60m"]) == 2
    assert "60m.yaml exists already and is kept" in capsys.readouterr().err
    assert copy_recipe("accelerate/fsdp2", "new/mine.yaml") == Path("new/mine.yaml")
    study = copy_recipe("studies/llama_tiny_four")
    small = {"keys": {**SMALL, "model": SIZES["llama"]}}  # every docstring would be packed, which is tried elsewhere
    study.write_text(study.read_text() + yaml.safe_dump(small))
    assert main(["compare", "llama_tiny_four.yaml", "--dry_run"]) == 0
    assert main(["recipes", "copy"]) == 2


def test_a_wheel_carries_every_file():
    project = (ROOT.parent / "pyproject.toml").read_text()
    assert 'package_dir={"ibnorm_hf.recipes": "recipes"}' in (ROOT.parent / "setup.py").read_text()
    assert '"ibnorm_hf.recipes" = ["*/*.yaml"' in project
    assert all(path.parent.parent == ROOT for path in shipped().values())
