# SPDX-License-Identifier: Apache-2.0
"""`record_shapes`: three numbers a norm on logged steps, and a training that is the same to the bit."""

import json

import pytest
import torch

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.shape import effective_rank, kurtosis, spread
from ibnorm_hf.modeling.create import create_norm
from ibnorm_hf.training import job
from ibnorm_hf.training.loop.shapes import LayerShapes, positions


def trained(make_recipe, folder, *words):
    job.pretrain(make_recipe("--norm_type", "ibnorm-t", "--output_dir", folder, *words))
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_shapes_are_logged_when_asked_and_change_nothing(make_recipe, tmp_path):
    plain = trained(make_recipe, tmp_path / "plain")
    told = trained(make_recipe, tmp_path / "told", "--record_shapes", "true")
    assert not any("shapes" in line for line in plain)
    assert [(line["loss"], line["grad_norm"]) for line in plain] == [(line["loss"], line["grad_norm"]) for line in told]
    for line in told:
        assert set(line["shapes"]) == set(line["share_over_lambda"]) and len(line["shapes"]) == 5
        for numbers in line["shapes"].values():
            assert 1 <= numbers["kurtosis"] <= 32 and 1 <= numbers["effective_rank"] <= 32 and numbers["spread"] > 0


def test_what_is_logged_is_what_the_norm_gave():
    model = torch.nn.Sequential(create_norm("layernorm", 8), torch.nn.Linear(8, 8), create_norm("ibnorm-l", 8))
    shapes, x = LayerShapes(model), torch.randn(3, 5, 8)
    model(x)
    assert shapes.read() == {}, "not a logged step"
    shapes.active = True
    model.eval()(x)
    assert shapes.read() == {}, "validation does not count"
    out = model.train()(x).reshape(15, 8).detach()
    (first, second) = shapes.read().values()
    expected = {f.__name__: f(out) for f in (kurtosis, effective_rank, spread)}
    assert second == pytest.approx(expected, abs=2e-6) and first != second
    assert shapes.read() == {}
    model(x * float("nan"))
    assert all("spread" not in numbers for numbers in shapes.read().values()), "what is no number is left out"


def test_positions_are_bounded_and_evenly_spaced():
    rows = torch.arange(1300.0)[:, None]
    assert positions(rows[None]).squeeze(1).tolist() == list(range(0, 1300, 3))
    pixels = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert positions(pixels).tolist() == [[float(i), float(i + 12)] for i in range(12)]


def test_it_is_refused_inside_a_compiled_model(make_recipe):
    with pytest.raises(UserError, match="record_shapes"):
        make_recipe("--record_shapes", "true", "--torch_compile", "true")
