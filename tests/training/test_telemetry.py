# SPDX-License-Identifier: Apache-2.0
"""What a run says of its norms and of its time: the log, the trackers, the end, the card, and anybody's Trainer."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainingArguments

from ibnorm_hf import IBNormLlamaConfig, IBNormLlamaForCausalLM, NormTelemetry
from ibnorm_hf.cli import main
from ibnorm_hf.hub.card import write_card
from ibnorm_hf.training import job
from ibnorm_hf.training.keys.recipe import load_recipe
from ibnorm_hf.training.loop.clock import Cost, duration
from ibnorm_hf.training.loop.likeness import distance_to_layernorm, norm_lines

from .conftest import TINY

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


def tiny(norm_lambda: float) -> IBNormLlamaForCausalLM:
    torch.manual_seed(0)
    return IBNormLlamaForCausalLM(IBNormLlamaConfig(norm_type="ibnorm-l", norm_lambda=norm_lambda, **SIZES)).eval()


def test_the_distance_to_layernorm_is_that_of_the_outputs():
    model, ids = tiny(0.5), torch.arange(20)[None]
    seen = {}
    model.model.norm.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    found = distance_to_layernorm(model, lambda: model(ids))
    assert len(found) == 5 and not model.model.layers[0].input_layernorm._forward_hooks
    plain = torch.nn.functional.layer_norm(seen["x"], (16,), model.model.norm.weight, None, model.model.norm.eps)
    assert (
        found["model.norm"] == pytest.approx((seen["y"] - plain).abs().max().item(), rel=1e-6)
        and found["model.norm"] > 0.01
    )
    nothing = distance_to_layernorm(tiny(1e6), lambda: tiny(1e6)(ids))
    assert nothing == {}  # another model was called
    free = tiny(1e6)
    assert max(distance_to_layernorm(free, lambda: free(ids)).values()) < 1e-4


@pytest.fixture(scope="module")
def idle(tmp_path_factory) -> Path:
    """A run whose lambda is far beyond everything, with TensorBoard, killed nowhere."""
    folder = tmp_path_factory.mktemp("idle")
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    keys = ["--norm_lambda", "1e6", "--report_to", "tensorboard", "--output_dir", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["pretrain", str(path), *keys]) == 0
    return folder / "run"


def test_a_lambda_that_does_nothing_is_said_at_the_end_and_in_the_card(idle: Path, tmp_path: Path):
    found = json.loads((idle / "eval" / "norms.json").read_text())
    names = found["largest_difference_to_layernorm"]
    assert found["layernorm_in_all_but_name"] == list(names) and len(names) == 5 and max(names.values()) < 1e-3
    (line,) = norm_lines(idle)
    assert line.startswith("norms: lambda does nothing in 5 of 5 IBNorms: they are LayerNorms in all but name")
    card = write_card(idle, target=tmp_path).read_text()
    assert "5 of them are LayerNorms in all but name: lambda does nothing there" in card
    assert "| wall time of training, s | not measured" not in card and "| core-seconds of the main process |" in card


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The tiny recipe as it stands."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    return job.pretrain(load_recipe(folder / "tiny.yaml", ["--output_dir", str(folder / "run")])).folder


def test_a_lambda_that_compresses_is_not_said_to_do_nothing(run: Path, tmp_path: Path):
    found = json.loads((run / "eval" / "norms.json").read_text())
    assert found["layernorm_in_all_but_name"] == [] and min(found["largest_difference_to_layernorm"].values()) > 1e-2
    assert norm_lines(run) == []
    assert "LayerNorms in all but name" not in write_card(run, target=tmp_path).read_text()


def test_trackers_are_told_lambda_share_and_speed(idle: Path):
    (events,) = {path.parent for path in idle.rglob("events.out.tfevents*")}
    board = EventAccumulator(str(events)).Reload()
    names = board.Tags()["scalars"]
    assert {"train/norm_lambda", "train/share_over_lambda", "train/tokens_per_s", "train/loss"} <= set(names)
    assert [event.value for event in board.Scalars("train/norm_lambda")] == [1e6] * 2
    assert [event.value for event in board.Scalars("train/share_over_lambda")] == [0.0] * 2


def test_time_and_cores_are_recorded_and_go_on_after_a_stop(run: Path, tmp_path: Path):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "seconds" in line]
    assert len(told) == 2
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(told))
    assert all(a["core_seconds"] < b["core_seconds"] for a, b in pairwise(told))
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 3, "seconds": 100.0, "core_seconds": 190.0}\n{"step": 3, "eval_loss": 1.0}\n')
    cost = Cost.after(log)
    sum(i * i for i in range(200_000))  # takes time of a core
    assert 100 < cost.seconds < 110 and 190 < cost.core_seconds < 200
    assert Cost.after(tmp_path / "none").seconds < 10


@pytest.mark.parametrize(
    "seconds, words", [(41.7, "42 s"), (185, "3 min 5 s"), (7805, "2 h 10 min"), (59.8, "1 min 0 s")]
)
def test_durations_in_words(seconds: float, words: str):
    assert duration(seconds) == words


def test_the_console_tells_how_long_it_took_and_will_take(make_recipe, capsys):
    job.pretrain(make_recipe())
    told = [line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line and line.startswith("step")]
    assert told[0].endswith(" left") and not told[-1].endswith(" left") and all(line.count(" s") for line in told)


def test_anybodys_trainer_logs_what_its_norms_do(tmp_path: Path):
    model = tiny(0.01)
    rows = [{"input_ids": torch.arange(8) % 50, "labels": torch.arange(8) % 50} for _ in range(16)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, logging_steps=2, use_cpu=True, report_to="tensorboard", save_strategy="no"
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    NormTelemetry().attach(trainer)
    trainer.train()
    told = [line for line in trainer.state.log_history if "loss" in line]
    assert len(told) == 2
    for line in told:
        assert line["norm_lambda"] == 0.01 and 0 < line["share_over_lambda"] < 1
        assert {"share_over_lambda/model.norm", "share_over_lambda/model.layers.0.input_layernorm"} <= set(line)
    (events,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    assert "train/share_over_lambda" in EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert not any(module._forward_pre_hooks for module in model.modules())  # nothing is left on the model
