# SPDX-License-Identifier: Apache-2.0
"""Calibration of next tokens: against closed forms, and by the command on a run."""

import json
import math

import pytest
import torch

from ibnorm_hf.common.packed import IGNORED
from ibnorm_hf.evaluation.command import OWN
from ibnorm_hf.evaluation.own.calibration import BINS, _means, token_sums


def sums(logits, labels):
    return _means(token_sums(torch.cat([logits, logits[:1]]), torch.cat([labels[:1], labels])))


def test_probabilities_from_which_labels_are_drawn_are_calibrated_and_sharper_ones_are_too_sure():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 8, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    found = {scale: sums(scale * logits, labels) for scale in (0.5, 1.0, 2.0)}
    assert abs(found[1.0]["overconfidence"]) < 0.02 and found[1.0]["calibration_error"] < 0.015
    assert found[2.0]["overconfidence"] > 0.3 and found[2.0]["calibration_error"] > 0.05
    assert found[0.5]["overconfidence"] < -0.2 and found[0.5]["calibration_error"] > 0.05
    assert found[0.5]["top1"] == found[2.0]["top1"] and found[1.0]["top1"] < found[1.0]["top5"] < 1


def test_closed_forms_by_hand():
    # Two tokens out of four at 1/2, 1/6, 1/6, 1/6: the first guess is right once.
    p = torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]).log().expand(2, 4)
    found = sums(p, torch.tensor([0, 1]))
    assert found["tokens"] == 2 and found["top1"] == 0.5 and found["top5"] == 1
    assert found["loss"] == pytest.approx((math.log(2) + math.log(6)) / 2)
    assert found["entropy"] == pytest.approx(found["loss"]) and found["overconfidence"] == pytest.approx(0, abs=1e-6)
    assert found["confidence"] == pytest.approx(0.5) and found["calibration_error"] == pytest.approx(0, abs=1e-6)
    sure = sums(torch.tensor([[50.0, 0, 0, 0]] * 2), torch.tensor([0, 1]))
    assert sure["calibration_error"] == pytest.approx(0.5) and sure["overconfidence"] == pytest.approx(25, rel=1e-6)


def test_what_is_not_predicted_counts_nothing():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 1, IGNORED, 4, IGNORED, 2])
    found = token_sums(logits, labels)
    assert found.shape == (6 + BINS,) and found[0] == 3
    kept = torch.tensor([0, 2, 4, 0])  # the rows that predict the labels 1, 4 and 2, and one more
    assert torch.allclose(found, token_sums(logits[kept], torch.tensor([3, 1, 4, 2])))


def test_the_command_measures_a_run(trained, command, refused, models, tmp_path):
    assert "calibration" in OWN
    words = ("eval", trained, "--tasks", "perplexity,calibration", "--output_path", tmp_path)
    code, out, err = command(*words)
    assert code == 0, err
    found, loss = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("calibration", "perplexity"))
    assert found["loss"] == pytest.approx(loss["loss"], rel=1e-6) and found["tokens"] == loss["tokens"]
    assert (found["sha256"], found["model_sha256"]) == (loss["sha256"], loss["model_sha256"])
    assert 0 < found["top1"] < found["top5"] < 1 and "next token: top-1" in out
    assert command("eval", trained, "--tasks", "calibration", "--batch_size", 1, "--output_path", tmp_path)[0] == 0
    again = json.loads((tmp_path / "calibration.json").read_text())
    assert (again["dtype"], again["autocast"]) == ("float32", None)
    assert all(
        again[name] == pytest.approx(value, rel=1e-5) for name, value in found.items() if isinstance(value, float)
    )
    assert "calibration needs the validation blocks of a run" in refused(
        "eval", models("llama"), "--tasks", "calibration"
    )
    assert "--block_sze does not concern calibration" in refused(
        "eval", trained, "--tasks", "calibration", "--block_sze", 2
    )
