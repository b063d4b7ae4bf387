# SPDX-License-Identifier: Apache-2.0
"""Kurtosis, effective rank and spread against values known by hand."""

import math

import pytest
import torch

from ibnorm_hf.common.shape import effective_rank, kurtosis, share_beyond, spread


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_kurtosis_is_that_of_a_row():
    assert kurtosis(torch.tensor([[1.0, -1, 1, -1], [3, 3, 5, 5]])) == pytest.approx(1)
    one_of_n = torch.zeros(2, 16)
    one_of_n[:, 3] = 1
    share = 1 / 16
    assert kurtosis(one_of_n) == pytest.approx((1 - 3 * share * (1 - share)) / (share * (1 - share)))
    assert kurtosis(normal(400, 256)) == pytest.approx(3, abs=0.05)
    assert kurtosis(normal(400, 256) * torch.arange(1, 401)[:, None] + 5) == pytest.approx(3, abs=0.05)
    assert kurtosis(torch.ones(3, 4)) == 0
    assert kurtosis(torch.cat([torch.ones(1, 4), torch.tensor([[1.0, -1, 1, -1]])])) == pytest.approx(1)


def test_effective_rank_counts_directions():
    directions = torch.eye(8, dtype=torch.float64)[:4]
    assert effective_rank(torch.cat([directions, -directions])) == pytest.approx(4)
    assert effective_rank(torch.cat([directions, -directions]).T @ directions.new_ones(8, 1)) == 0
    assert 1 <= effective_rank(normal(6, 100)) <= 5, "fewer samples than dimensions"
    few, many = normal(20, 30), normal(20, 30).T
    for rows in (few, many):
        spectrum = torch.linalg.svdvals(rows - rows.mean(0)).square()
        share = spectrum / spectrum.sum()
        assert effective_rank(rows) == pytest.approx(math.exp(float(torch.special.entr(share).sum())))
    assert effective_rank(torch.ones(5, 3)) == 0


def test_spread_and_share_are_about_the_mean_of_a_row():
    rows = torch.tensor([[10.0, 12], [0, 4]])
    assert spread(rows) == pytest.approx(math.sqrt((1 + 1 + 4 + 4) / 4))
    assert share_beyond(rows, 1.5) == 0.5
    assert share_beyond(rows, 2.0) == 0, "at the bound is not beyond it"
