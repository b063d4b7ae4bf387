# SPDX-License-Identifier: Apache-2.0
"""What every estimator of information returns, and how every one of them reads its input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """One estimated quantity, in nats. ``float(estimate)`` is its value.

    Attributes:
        name: what was estimated, in words.
        value: the estimate.
        interval: 95 % by a normal approximation, or None where it was not measured.
        shuffled: the same estimator where the dependence was destroyed by shuffling: what it says about nothing.
            None where it was not measured.
        samples: number of samples used.
        seed: of the shuffle, the folds and the anchors.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    shuffled: float | None
    samples: int
    seed: int

    def __float__(self) -> float:
        return self.value


def around(value: float, error: float | None) -> tuple[float, float] | None:
    """The 95 % interval of a value with this standard error."""
    return None if error is None else (value - 1.96 * error, value + 1.96 * error)


def as_matrix(values: Any, name: str) -> Tensor:
    """Numbers as a float64 matrix, (samples, width), on the CPU. Raises ValueError for NaN, infinity or no sample."""
    matrix = torch.as_tensor(values).detach().to("cpu", torch.float64)
    matrix = matrix.unsqueeze(1) if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"{name} must be (samples, width) with at least one of each, got {tuple(matrix.shape)}.")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} holds NaN or infinity; leave these samples out and say so.")
    return matrix


def as_labels(values: Any, samples: int) -> Tensor:
    """Labels as (samples,), numbered from 0 without gaps. Raises ValueError for NaN or another length."""
    labels = torch.as_tensor(values).detach().cpu()
    if labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
        raise ValueError("labels hold NaN or infinity.")
    if labels.shape != (samples,):
        raise ValueError(f"labels must be ({samples},), one a sample, got {tuple(labels.shape)}.")
    return torch.unique(labels, return_inverse=True)[1]


def permutation(samples: int, seed: int) -> Tensor:
    """The seeded permutation by which pairs are shuffled."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


def shuffled_columns(features: Tensor, seed: int) -> Tensor:
    """Every column in an order of its own: the same marginals, without dependence between features."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(features.shape, generator=generator, dtype=torch.float64).argsort(0)
    return features.gather(0, order)


def jackknife_error(statistic: Callable[[Tensor], float], samples: int, groups: int, seed: int) -> float | None:
    """Standard error by leaving out one of ``groups`` random groups at a time; None for fewer than two groups.

    Args:
        statistic: from the indices that are kept to the value.
    """
    groups = min(groups, samples // 2)
    if groups < 2:
        return None
    group = permutation(samples, seed) % groups
    values = [statistic((group != index).nonzero().squeeze(1)) for index in range(groups)]
    mean = math.fsum(values) / groups
    return math.sqrt((groups - 1) / groups * math.fsum((value - mean) ** 2 for value in values))
