# SPDX-License-Identifier: Apache-2.0
"""Python that lies beside a checkpoint is neither run nor asked about."""

import json

import pytest

from ibnorm_hf.cli import main


@pytest.fixture
def trap(tmp_path):
    """A checkpoint whose config and model are its own Python, which would leave a file behind."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "trap", "architectures": ["Trap"]}
    config["auto_map"] = {"AutoConfig": "code.TrapConfig", "AutoModelForCausalLM": "code.Trap"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "{model}", "{out}", "--norm_type", "ibnorm-l"),
        ("eval", "{model}", "--tasks", "perplexity"),
        ("export", "{model}", "{out}"),
        ("finetune", "{recipe}", "--pretrained", "{model}", "--dry_run"),
        ("finetune", "{recipe}", "--pretrained", "{model}"),
    ],
    ids=lambda words: words[0],
)
def test_code_beside_a_checkpoint_is_refused_without_a_question(trap, tmp_path, monkeypatch, capsys, words):
    def ask(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)
    (tmp_path / "recipe.yaml").write_text("norm_type: ibnorm-l\ncorpus: embedded\nmax_steps: 1\n")
    places = {"model": trap, "out": tmp_path / "out", "recipe": tmp_path / "recipe.yaml"}
    assert main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(trap) in error, error
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
