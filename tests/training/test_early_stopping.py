# SPDX-License-Identifier: Apache-2.0
"""A run that stops early: at the same step whatever happens to it, finished, and said so wherever its end is told."""

import json
import shutil
from pathlib import Path

import pytest

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.hub.card import write_card
from ibnorm_hf.training import job
from ibnorm_hf.training.keys.identity import identity, run_id
from ibnorm_hf.training.keys.recipe import Recipe, load_recipe, resolved
from ibnorm_hf.training.loop.early_stopping import EarlyStopping
from ibnorm_hf.training.loop.trainer import PretrainTrainer
from tests.faults.compare import load, unlike

from .test_processes import lines
from .test_processes import two_processes as launch
from .test_run import Killed, kill_at

RESNET = Path(__file__).parents[2] / "recipes" / "resnet" / "tiny.yaml"
# No improvement is ever 3 nats: the first validation is the best, and patience ends at the third.
KEYS = [
    "--max_steps",
    "12",
    "--eval_steps",
    "2",
    "--save_steps",
    "4",
    "--logging_steps",
    "2",
    "--save_total_limit",
    "9",
]
KEYS += ["--early_stopping_patience", "2", "--early_stopping_threshold", "3"]
IMAGES = ["--global_batch_size", "16", "--per_device_train_batch_size", "16", "--warmup_steps", "2"]
END = {"step": 6, "best_step": 2, "patience": 2}


@pytest.fixture(params=["text", "images"])
def make(request, make_recipe, tmp_path: Path):
    def recipe(folder: str, *words: str) -> Recipe:
        place = ["--output_dir", str(tmp_path / folder)]
        if request.param == "text":
            return make_recipe(*KEYS, *place, *words)
        return load_recipe(RESNET, [*KEYS, *IMAGES, "--use_cpu", "true", *place, *words])

    return recipe


def kill_when_saved(monkeypatch, step: int) -> None:
    """Make the run die before the checkpoint of this step is written."""
    real = PretrainTrainer._save_sealed

    def save(self, *words):
        if self.state.global_step == step:
            raise Killed
        real(self, *words)

    monkeypatch.setattr(PretrainTrainer, "_save_sealed", save)


def test_it_counts_validations_since_the_best():
    stop = EarlyStopping(patience=2, threshold=0.1)
    losses = [5.0, 4.95, 4.8, 4.9, 4.71, 4.0]
    assert [stop.judge(step, loss) for step, loss in enumerate(losses)] == [False, False, False, False, True, False]
    again = EarlyStopping(patience=2, threshold=0.1)
    for step, loss in enumerate(losses[:4]):
        assert not again.judge(step, loss)
        again.load(json.loads(json.dumps(again.state())))
        again.judge(step, loss)  # once more, as a resumed run might: a step is judged once
    assert again.judge(4, losses[4]) and (again.best, again.best_step) == (4.8, 2)


def test_an_end_before_the_last_step_is_an_end(make, tmp_path: Path, capsys):
    done = job.pretrain(make("run"))
    run = tmp_path / "run"
    said = capsys.readouterr().out
    assert "step 6  validation loss" in said and "stopped early: none better since step 2" in said
    assert "step 8/12" not in said
    assert done.stopped_by is None and done.validation["step"] == 6
    assert done.validation["stopped_early"] == END | {"best_loss": done.validation["stopped_early"]["best_loss"]}
    assert load(run / "eval" / "validation.json") == done.validation
    seen = done.validation.get("tokens_seen", done.validation.get("images_seen"))
    assert (
        seen == 6 * {"tokens_seen": 4 * 32, "images_seen": 16}[next(k for k in done.validation if k.endswith("_seen"))]
    )
    for folder in ("checkpoint-6", "model"):
        manifest = load(run / folder / "manifest.json")
        assert manifest["step"] == 6 and manifest["stopped_early"]["best_step"] == 2
    validations = [line for line in lines(run) if "eval_loss" in line]
    assert [line["eval_since_best"] for line in validations] == [0, 1, 2]
    assert [line.get("stopped_early") for line in validations] == [None, None, True]
    # Finished: the same command finds it, with its checkpoints and without.
    for gone in ([], run.glob("checkpoint-*")):
        for path in gone:
            shutil.rmtree(path)
        again = job.pretrain(make("run"))
        assert again.found and again.validation == done.validation
        assert "the run stopped early, after step 6 of 12, nothing to train" in capsys.readouterr().out
    assert write_card(run) and "6 of 12: stopped early, no better validation in 2 after step 2" in (
        run / "model" / "README.md"
    ).read_text().replace("\n", " ")
    with pytest.raises(UserError, match="early_stopping_patience is 2 there and 3 here"):
        job.pretrain(make("run", "--early_stopping_patience", "3"))


@pytest.mark.faults
@pytest.mark.parametrize("killed", ["in step 5", "after the last validation"])
def test_a_killed_run_stops_at_the_same_step(make, tmp_path: Path, monkeypatch, killed: str):
    """Killed behind a checkpoint, and between the validation that ends the run and the checkpoint that says so."""
    job.pretrain(make("whole"))
    with monkeypatch.context() as patch:
        if killed == "in step 5":
            kill_at(patch, 5)
        else:
            kill_when_saved(patch, 6)
        with pytest.raises(Killed):
            job.pretrain(make("killed"))
    assert (tmp_path / "killed" / "checkpoint-4").exists()
    job.pretrain(make("killed"))
    assert unlike(tmp_path / "whole", tmp_path / "killed") == []
    # What ends after the last checkpoint is made anew: `model/`, validation.
    shutil.rmtree(tmp_path / "killed" / "model")
    shutil.rmtree(tmp_path / "killed" / "eval")
    job.pretrain(make("killed"))
    before, after = (load(tmp_path / name / "eval" / "validation.json") for name in ("whole", "killed"))
    assert before.pop("loss") == pytest.approx(after.pop("loss"), rel=1e-6)
    assert {key: before[key] for key in ("step", "stopped_early")} == {k: after[k] for k in ("step", "stopped_early")}


def test_at_the_last_step_it_is_an_end_like_any_other(make, tmp_path: Path):
    done = job.pretrain(make("run", "--max_steps", "6"))
    assert done.validation["step"] == 6 and "stopped_early" not in done.validation


def test_two_processes_stop_at_the_step_of_one(make_recipe, recipe_file: Path, tmp_path: Path):
    keys = [*KEYS, "--per_device_train_batch_size", "2", "--global_batch_size", "4"]
    one = job.pretrain(make_recipe(*keys, "--output_dir", tmp_path / "one"))
    launch("ddp", recipe_file, tmp_path / "two", keys)
    two = load(tmp_path / "two" / "eval" / "validation.json")
    assert two["step"] == one.validation["step"] == 6
    assert two["stopped_early"] == pytest.approx(one.validation["stopped_early"], rel=1e-5)
    manifest = load(tmp_path / "two" / "checkpoint-6" / "manifest.json")
    assert manifest["processes"] == 2 and manifest["stopped_early"]["step"] == 6


def test_when_it_is_validated_then_decides(make_recipe):
    for keys, bound in (([], False), (["--early_stopping_patience", "2"], True)):
        recipe = make_recipe(*keys)
        assert ("eval_steps" in identity(resolved(recipe))) is bound
        assert (run_id(recipe) != run_id(make_recipe(*keys, "--eval_steps", "2"))) is bound


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--early_stopping_patience", "0"], "must be at least 1"),
        (["--early_stopping_patience", "2", "--eval_strategy", "no"], "needs validations: set eval_strategy to steps"),
        (["--early_stopping_threshold", "1"], "needs early_stopping_patience beside it"),
        (["--early_stopping_patience", "2", "--early_stopping_threshold", "-1"], "must not be negative"),
        (
            ["--early_stopping_patience", "2", "--norm_lambda_schedule", "{start: 9, end: 1}"],
            "and norm_lambda_schedule exclude each other",
        ),
    ],
)
def test_what_cannot_stop_early_is_refused(recipe_file: Path, capsys, words, sentence):
    assert main(["pretrain", str(recipe_file), "--dry_run", *words]) == 2
    assert sentence in capsys.readouterr().err
