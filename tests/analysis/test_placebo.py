# SPDX-License-Identifier: Apache-2.0
"""A swap of the norm alone moves the figures, and loses two scalars a token only."""

import csv
import math

import pytest
import torch

from ibnorm_hf.analysis.neighbours import neighbour_accuracy
from ibnorm_hf.analysis.placebo import Row, fixed_data, placebo, recover, write_csv
from ibnorm_hf.modeling.compression import get_compression


def softsign_back(u):
    return torch.where(u.abs() < 1, u / (1 - u.abs()).clamp(min=1e-300), u.sign() * math.inf)


INVERSE = {
    "ibnorm-l": lambda u: u.sign() * torch.expm1(u.abs()),
    "ibnorm-t": lambda u: torch.atanh(u.clamp(-1, 1)),
    "ibnorm-s": softsign_back,
    "ibnorm-sqrt": lambda u: u.sign() * ((1 + u.abs() / 2) ** 2 - 1),
}


@pytest.mark.parametrize("name", INVERSE)
def test_two_scalars_a_token_give_the_input_back(name):
    entry = get_compression(name)
    lam = entry.default_lambda
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp() - 3
    mean = x.mean(-1, keepdim=True)
    c = lam * entry.g((x - mean) / lam)
    std = (c.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    z = (c - c.mean(-1, keepdim=True)) / std
    assert c.mean(-1).abs().min() > 1e-3, "skewed, so that the mean of c has to be found"
    back = recover(z, mean, std, lambda values: lam * INVERSE[name](values / lam))
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)


def test_a_swap_alone_gives_the_order_without_learning(tmp_path):
    """400 of the samples: LayerNorm < L < T, softsign, also over shuffled labels; readers by distance really gain."""
    inputs, labels = fixed_data(outliers=3, samples=400)
    rows = placebo(inputs, labels)
    layer, log, tanh, softsign = (row.ib_value / math.log(2) for row in rows)
    assert 0.1 < layer < log - 0.05
    assert log < min(tanh, softsign) < max(tanh, softsign) < 0.9
    excess = [row.about_labels - row.about_labels_shuffled for row in rows]
    assert excess[0] < min(excess[1:]), "subtracting the shuffled value does not undo the order"
    assert rows[0].neighbour_accuracy < 0.75 < 0.85 < min(row.neighbour_accuracy for row in rows[1:])
    assert [row.norm_lambda for row in rows] == [None, 4, 4, 3]
    write_csv(rows, tmp_path / "placebo.csv")
    with open(tmp_path / "placebo.csv", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["norm"] for row in read] == ["layernorm", "ibnorm-l", "ibnorm-t", "ibnorm-s"]
    assert [float(row["ib_value"]) for row in read] == [row.ib_value for row in rows]
    assert set(read[0]) == set(Row.__dataclass_fields__)


def test_fixed_data_is_fixed_and_balanced():
    first, labels = fixed_data(samples=64, width=8, seed=3)
    again, _ = fixed_data(samples=64, width=8, seed=3)
    assert torch.equal(first, again)
    assert not torch.equal(first, fixed_data(samples=64, width=8, seed=4)[0])
    assert torch.bincount(labels).tolist() == [4] * 16
    torch.testing.assert_close(fixed_data(samples=64, width=8, seed=3, scale=4.0)[0], 4 * first)
    wide = fixed_data(samples=64, width=8, seed=3, outliers=2)[0]
    assert torch.equal(wide[:, 2:], first[:, 2:])
    assert (wide[:, :2].std(0) > 3 * first[:, :2].std(0)).all()


def test_neighbour_accuracy_by_hand():
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]], dtype=torch.float64)
    assert neighbour_accuracy(points, torch.tensor([0, 0, 0, 1, 1, 1]), k=2) == 1
    assert neighbour_accuracy(points, torch.tensor([0, 0, 0, 1, 0, 0]), k=2) == pytest.approx(5 / 6)
