# SPDX-License-Identifier: Apache-2.0
"""A run that is finished stays as it is; a folder whose parts do not belong together is refused with what to do."""

import shutil
from pathlib import Path

import pytest

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training import job
from tests.training.conftest import LICENSE, TINY


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run, and one of an adapter on it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "pretrain.yaml").write_text(TINY)
    fine = TINY[: TINY.index("model_type")] + TINY[TINY.index("corpus:") :]
    (folder / "finetune.yaml").write_text(fine + f"pretrained: {folder}/pretrain/model\nadapter: lora\nlora_r: 2\n")
    for name in ("pretrain", "finetune"):
        assert main([name, str(folder / f"{name}.yaml"), "--output_dir", str(folder / name)]) == 0
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """``copy(job)``: (command, its finished run folder, which a test may change)."""

    def copied(name):
        run = Path(shutil.copytree(made / name, tmp_path / "run"))
        return [name, str(made / f"{name}.yaml"), "--output_dir", str(run)], run

    return copied


def state(run):
    return {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def without_checkpoints(run):
    for path in run.glob("checkpoint-*"):
        shutil.rmtree(path)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
@pytest.mark.parametrize("checkpoints", [True, False])
def test_the_same_command_changes_nothing(copy, capsys, monkeypatch, name, checkpoints):
    command, run = copy(name)
    if not checkpoints:
        without_checkpoints(run)
    before = state(run)
    monkeypatch.setattr(job, "make_trainer", lambda *words: pytest.fail("trained again"))
    assert main([*command, "--logging_steps", "1"]) == 0  # a key that may change
    out = capsys.readouterr().out
    assert f"all 6 steps are done, nothing to train: {run} is finished" in out
    assert "validation loss" in out and "sample:" in out and "tokens/s" in out
    assert state(run) == before


def test_without_its_corpus_it_is_finished_all_the_same(tmp_path, recipe_file, capsys):
    corpus = Path(shutil.copy(LICENSE, tmp_path / "corpus.txt"))
    command = ["pretrain", str(recipe_file), "--corpus", str(corpus), "--output_dir", str(tmp_path / "run")]
    assert main(command) == 0
    without_checkpoints(tmp_path / "run")
    corpus.write_text(LICENSE.read_text().upper())
    assert main(command) == 2
    assert "model was trained with another tokenizer than the recipe names now" in capsys.readouterr().err
    corpus.unlink()
    assert main(command) == 0
    assert "cannot be compared" in (out := capsys.readouterr().out) and "is finished and stays" in out


def test_another_recipe_is_still_another_run(copy, capsys):
    command, run = copy("pretrain")
    without_checkpoints(run)
    assert main([*command, "--learning_rate", "0.5"]) == 2
    assert "holds another run (learning_rate" in capsys.readouterr().err


def damage(run):
    path = run / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


PARTS = {
    "a damaged model": (damage, "does not match its checksum"),
    "a model without its list": (lambda run: (run / "model" / "manifest.json").unlink(), "manifest.json"),
    "no validation": (lambda run: (run / "eval" / "validation.json").unlink(), "no eval/validation.json"),
}


@pytest.mark.parametrize("part", PARTS)
def test_half_a_finished_run_is_refused_or_made_anew(copy, make_recipe, part):
    _, run = copy("pretrain")
    PARTS[part][0](run)
    aside = run.with_name("last")
    shutil.move(run / "checkpoint-6", aside)
    before = state(run)
    with pytest.raises(UserError, match=f"{PARTS[part][1]}.*; remove {run}/model to go on from checkpoint-3"):
        job.pretrain(make_recipe())
    shutil.move(run / "checkpoint-3", run.with_name("first"))
    with pytest.raises(UserError, match=f"{PARTS[part][1]}.*; bring it back, or choose another output_dir"):
        job.pretrain(make_recipe())
    assert state(run).keys() == {path for path in before if "checkpoint-3" not in path.parts}
    shutil.move(aside, run / "checkpoint-6")
    loss = job.pretrain(make_recipe()).validation["loss"]
    again = job.pretrain(make_recipe())
    assert again.found and again.validation["loss"] == loss


def test_lost_checkpoints_are_no_reason_to_write_over_the_log(copy, make_recipe):
    _, run = copy("pretrain")
    without_checkpoints(run)
    shutil.rmtree(run / "model")
    before = state(run)
    with pytest.raises(UserError, match=r"has logged step 6, but its checkpoints are gone: .*output_dir, or remove"):
        job.pretrain(make_recipe())
    assert state(run) == before
    log = run / "metrics.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:1]))  # killed before the first one
    assert not job.pretrain(make_recipe()).found


def test_going_back_keeps_the_earlier_end_apart(copy, make_recipe, capsys):
    _, run = copy("pretrain")
    old = (run / "model" / "model.safetensors").read_bytes()
    job.pretrain(make_recipe("--resume", run / "checkpoint-3"))
    assert f"model, eval, loss.png of the run's earlier end are in {run}/before-1" in capsys.readouterr().out
    assert (run / "before-1" / "model" / "model.safetensors").read_bytes() == old
    assert job.pretrain(make_recipe()).found
