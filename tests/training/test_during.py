# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it trains: a validation before the first step of a fine-tune, and samples."""

import json
from pathlib import Path

import pytest

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training import job
from ibnorm_hf.training.keys.recipe import load_recipe, resolved
from ibnorm_hf.training.loop.trainer import PretrainTrainer

from .conftest import TINY


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("during")
    (folder / "tiny.yaml").write_text(TINY)
    words = ["--output_dir", str(folder / "run"), "--sample_steps", "2"]
    return job.pretrain(load_recipe(folder / "tiny.yaml", words)).folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_come_at_their_steps_and_change_nothing(base: Path, tmp_path: Path):
    samples = lines(base / "eval" / "samples.jsonl")
    assert [line["step"] for line in samples] == [2, 4, 6]
    assert samples[-1]["text"].strip() == (base / "eval" / "sample.txt").read_text().strip()
    assert samples[0]["text"] != samples[-1]["text"]
    (tmp_path / "tiny.yaml").write_text(TINY)
    plain = job.pretrain(load_recipe(tmp_path / "tiny.yaml", ["--output_dir", str(tmp_path / "run")])).folder
    weights = "model/model.safetensors"
    assert (plain / weights).read_bytes() == (base / weights).read_bytes()


def test_a_fine_tune_is_validated_before_its_first_step_and_once(base: Path, tmp_path: Path, monkeypatch):
    expected = json.loads((base / "eval" / "validation.json").read_text())["loss"]
    corpus = TINY.split("corpus: ")[1].splitlines()[0]
    keys = f"pretrained: {base / 'model'}\ncorpus: {corpus}\nblock_size: 32\nvalidation_fraction: 0.1\nmax_steps: 4\n"
    keys += "per_device_train_batch_size: 4\nlogging_steps: 2\neval_steps: 2\nsave_steps: 2\nuse_cpu: true\n"
    (tmp_path / "fine.yaml").write_text(keys)
    recipe = load_recipe(tmp_path / "fine.yaml", ["--output_dir", str(tmp_path / "run")])
    assert resolved(recipe)["eval_on_start"] is True

    step = PretrainTrainer.training_step

    def stop_at(self, *args, **keys):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **keys)

    monkeypatch.setattr(PretrainTrainer, "training_step", stop_at)
    with pytest.raises(KeyboardInterrupt):
        job.pretrain(recipe)
    monkeypatch.setattr(PretrainTrainer, "training_step", step)
    job.pretrain(load_recipe(tmp_path / "fine.yaml", ["--output_dir", str(tmp_path / "run")]))
    validated = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line]
    assert [line["step"] for line in validated] == [0, 2, 4]
    assert validated[0]["eval_loss"] == pytest.approx(expected, abs=1e-6)


def test_who_says_so_is_not_validated_before(base: Path, tmp_path: Path):
    (tmp_path / "fine.yaml").write_text(f"pretrained: {base / 'model'}\nmax_steps: 4\nuse_cpu: true\n")
    for words, wanted in ((["--eval_on_start", "false"], False), (["--eval_strategy", "no"], False), ([], True)):
        assert load_recipe(tmp_path / "fine.yaml", words).run.eval_on_start is wanted
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert not load_recipe(tmp_path / "tiny.yaml").run.eval_on_start


@pytest.mark.parametrize("words", [["--sample_steps", "0"], ["--images", "digits", "--sample_steps", "2"]])
def test_samples_that_cannot_be_are_refused(tmp_path: Path, words: list[str]):
    (tmp_path / "r.yaml").write_text(
        "model_type: ibnorm_llama\nmax_steps: 2\n" if len(words) == 2 else "model_type: ibnorm_vit\n"
    )
    with pytest.raises(UserError, match="key sample_steps must be at least 1, and is for language models"):
        load_recipe(tmp_path / "r.yaml", words)
