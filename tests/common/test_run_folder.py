# SPDX-License-Identifier: Apache-2.0
"""The one reader of run folders: types, links, later versions, verification."""

import json

import pytest

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.listing import MANIFEST, write_listing
from ibnorm_hf.common.run import VERSION, Run, checkpoints, model_folder, require_safetensors, verify_model


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "eval").mkdir()
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    return folder


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, content, attribute, words",
    [
        (
            "environment.json",
            {"seed": "seven"},
            "environment",
            "key seed holds 'seven' instead of a whole",
        ),
        ("environment.json", {"command": "ls"}, "environment", "key command holds 'ls' instead of a list"),
        ("environment.json", {"versions": {"torch": 2}}, "environment", "key versions.torch holds 2 instead of a text"),
        ("data.json", {"validation": []}, "data", "key validation holds [] instead of a mapping"),
        ("data.json", {"train": {"shards": [{"file": 1}]}}, "data", "key train.shards[0].file holds 1"),
        ("data.json", {"train": {"tokens": True}}, "data", "key train.tokens holds True instead of a whole number"),
        ("eval/validation.json", {"loss": "low"}, "validation", "key loss holds 'low' instead of a whole number or a"),
    ],
)
def test_wrong_types_are_one_sentence(run, name, content, attribute, words):
    assert getattr(Run(run), attribute) == {}  # absent is empty
    (run / name).write_text(json.dumps(content))
    message = refused(lambda: getattr(Run(run), attribute))
    assert words in message and name.split("/")[-1] in message


def test_a_run_of_a_later_form_says_so(run):
    (run / "environment.json").write_text(json.dumps({"run_version": VERSION + 1}))
    assert "update ibnorm_hf" in refused(lambda: Run(run).environment)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "eval/validation.json", "metrics.jsonl"])
def test_links_in_a_run_are_refused(run, tmp_path, name):
    (tmp_path / "secret").write_text("a: 1\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "secret")
    attribute = name.split("/")[-1].split(".")[0]
    assert "is a link" in refused(lambda: getattr(Run(run), attribute))


def test_a_linked_folder_is_refused_too(run, tmp_path):
    (run / "eval").rmdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "validation.json").write_text("{}")
    (run / "eval").symlink_to(tmp_path / "other")
    assert "is a link or lies behind one" in refused(lambda: Run(run).validation)
    (run / "model").rename(tmp_path / "model")
    (run / "model").symlink_to(tmp_path / "model")
    assert "is a link" in refused(model_folder, run)


def test_half_lines_of_a_killed_run_are_left_out(run):
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": "x"}\n[]\n{"step": 2, "loss": NaN}\n{"st')
    assert Run(run).metrics == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]


def test_checkpoints_by_their_number_only(run):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-backup", "checkpoint-" + "9" * 30):
        (run / name).mkdir()
    assert [step for step, _ in checkpoints(run)] == [9, 10]
    (run / "model" / "config.json").unlink()
    assert "take its checkpoint" in refused(model_folder, run) and "checkpoint-10" in refused(model_folder, run)


def test_a_model_is_verified_before_it_is_read_and_once(run, monkeypatch):
    model = run / "model"
    verify_model(model)  # without a list there is nothing to compare
    write_listing(model, MANIFEST, {})
    verify_model(model)
    (model / "README.md").write_text("a card comes later")
    verify_model(model)
    from ibnorm_hf.common import run as module

    monkeypatch.setattr(module, "problems", lambda *_: pytest.fail("read twice"))
    verify_model(model)
    monkeypatch.undo()
    (model / "model.safetensors").write_bytes(b"weightS")
    assert "model.safetensors does not match its checksum" in refused(verify_model, model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "it is a pickle" in refused(require_safetensors, model)
