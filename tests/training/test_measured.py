# SPDX-License-Identifier: Apache-2.0
"""What the log says of samples, tokens, speed and losses is measured where they arrive, at no cost to a step."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ibnorm_hf.cli import main
from ibnorm_hf.training import job
from ibnorm_hf.training.folder.manifest import checkpoints, verify
from ibnorm_hf.training.keys.recipe import load_recipe
from ibnorm_hf.training.loop.trainer import PretrainTrainer

RECIPES = Path(__file__).parents[2] / "recipes"


def training_lines(run: Path) -> list[dict]:
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.fixture
def make_image_recipe(tmp_path: Path):
    """``make_image_recipe("--key", value, ...)``: the tiny ResNet on digits, six steps of 64."""

    def make(*words):
        keys = ["--max_steps", 6, "--logging_steps", 3, "--eval_steps", 6, "--save_steps", 3, "--use_cpu", "true"]
        given = [*keys, "--output_dir", tmp_path / "run", *words]
        return load_recipe(RECIPES / "resnet" / "tiny.yaml", [str(word) for word in given])

    return make


@pytest.fixture(params=["text", "images"])
def make(request, make_recipe, make_image_recipe):
    """A recipe of either kind."""
    return make_recipe if request.param == "text" else make_image_recipe


def reverse(monkeypatch, task_class: type) -> None:
    """Turn the training data of a task around, as a fault below the sampler would."""
    real = task_class.trainer

    def trainer(self, *words, **keys):
        made = real(self, *words, **keys)
        made.train_dataset.rows = made.train_dataset.rows.select(range(len(made.train_dataset) - 1, -1, -1))
        return made

    monkeypatch.setattr(task_class, "trainer", trainer)


def test_other_data_under_the_same_order_is_another_digest(make, tmp_path, monkeypatch):
    job.pretrain(make("--output_dir", tmp_path / "one"))
    job.pretrain(make("--output_dir", tmp_path / "again", "--per_device_train_batch_size", 2, "--global_batch_size", 4))
    with monkeypatch.context() as patch:
        reverse(patch, type(job.task_of(make())))
        job.pretrain(make("--output_dir", tmp_path / "reversed"))
    one, again, turned = (
        [line["samples_sha256"] for line in training_lines(tmp_path / n)] for n in ("one", "again", "reversed")
    )
    assert len(set(one)) == 2 and not set(one) & set(turned)
    if make().run.global_batch_size == 4:
        assert again == one  # however a step is cut


@pytest.mark.parametrize("hook", ["_get_train_sampler", "_get_grad_norm"])
def test_a_private_hook_that_is_no_longer_called_is_loud(make_recipe, monkeypatch, hook):
    from transformers import Trainer

    monkeypatch.setattr(PretrainTrainer, hook, getattr(Trainer, hook))  # as if transformers had renamed it
    with pytest.raises(RuntimeError, match="transformers no longer asks for"):
        job.pretrain(make_recipe())


def test_what_arrives_is_counted(make, tmp_path):
    recipe = make()
    job.pretrain(recipe)
    lines, per_step = training_lines(tmp_path / "run"), recipe.run.global_batch_size
    if "tokens" in lines[0]:
        assert [line["tokens"] for line in lines] == [3 * per_step * 32, 6 * per_step * 32]
        assert [line["targets"] for line in lines] == [3 * per_step * 31, 6 * per_step * 31]
    else:
        assert [line["images"] for line in lines] == [line["targets"] for line in lines] == [3 * per_step, 6 * per_step]


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for its device: values of tensors that Python asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_its_device_only_where_it_is_logged(make, monkeypatch):
    seen: dict[int, int] = {}
    waits = Waits()
    real_step, real_log = PretrainTrainer.training_step, PretrainTrainer.log

    def training_step(self, *words, **keys):
        seen[self.state.global_step + 1] = waits.count
        return real_step(self, *words, **keys)

    monkeypatch.setattr(PretrainTrainer, "training_step", training_step)
    keys = ["--max_steps", 6, "--logging_steps", 6, "--eval_strategy", "no", "--save_strategy", "no"]
    with waits:
        job.pretrain(make(*keys, "--max_grad_norm", 1))
    assert real_log is PretrainTrainer.log and waits.count > seen[6]  # it does count
    assert seen[6] == seen[1]


def test_speed_is_by_the_clock_and_says_what_was_waiting(make, tmp_path, monkeypatch):
    from ibnorm_hf.training.loop import arrivals, trainer

    real = arrivals._marked

    def slow(row, index):
        time.sleep(0.005)
        return real(row, index)

    monkeypatch.setattr(arrivals, "_marked", slow)
    real_scores = trainer.PretrainTrainer.scores

    def scores(self, data, rows=None):
        time.sleep(0.3)  # validation is not training
        return real_scores(self, data, rows)

    monkeypatch.setattr(trainer.PretrainTrainer, "scores", scores)
    job.pretrain(make("--eval_steps", 2, "--max_steps", 6, "--logging_steps", 2))
    line = training_lines(tmp_path / "run")[1]  # the loader reads a batch ahead, so that the last ones cost nothing
    unit, each = ("tokens", 32) if "tokens" in line else ("images", 1)
    # At 5 ms a sample no more than 200 samples a second, whatever the machine; nearly all of it waiting.
    assert 10 * each < line[f"{unit}_per_s"] <= 201 * each
    assert 0.3 < line["data_wait"] <= 1


@pytest.mark.parametrize("at", ["the last step", "before it"])
def test_a_validation_that_is_no_number_ends_the_run_in_a_sentence(make, tmp_path, monkeypatch, at):
    keys = ["--eval_steps", 3 if at == "before it" else 6, "--save_steps", 2]
    real = PretrainTrainer.scores

    def scores(self, data):
        with monkeypatch.context() as patch:
            if self.state.global_step == (6 if at == "the last step" else 3):
                sums = self.objective.sums
                patch.setattr(self.objective, "sums", lambda logits, labels: sums(logits * math.nan, labels))
            return real(self, data)

    monkeypatch.setattr(PretrainTrainer, "scores", scores)
    recipe = make(*keys)
    for _ in range(2):  # and again, by the same command
        with pytest.raises(ValueError, match=r"the validation loss after step \d is nan, no number") as caught:
            job.pretrain(recipe)
        assert caught.value.exit_code == 1
        recipe = make(*keys)
    run = tmp_path / "run"
    assert not (run / "model").exists() and not (run / "eval" / "validation.json").exists()
    assert checkpoints(run)
    for _, path in checkpoints(run):
        verify(path)
    for path in run.rglob("*.json*"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=pytest.fail)


def test_a_rate_that_breaks_the_weights_ends_with_1(recipe_file, tmp_path, capsys):
    keys = [
        "--learning_rate",
        "1e30",
        "--max_steps",
        "1",
        "--warmup_steps",
        "0",
        "--logging_steps",
        "1",
        "--eval_steps",
        "1",
    ]
    assert main(["pretrain", str(recipe_file), "--output_dir", str(tmp_path / "run"), *keys]) == 1
    assert "error: the validation loss after step 1 is " in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
