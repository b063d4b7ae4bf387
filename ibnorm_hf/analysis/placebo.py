# SPDX-License-Identifier: Apache-2.0
"""The placebo: the same fixed input through each norm, without any training.

A norm that works on one token loses two scalars and nothing else (``recover``). A difference of "information" between
norms that stands here as well is therefore geometry and estimator: a swap alone explains it, and learning has no part.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..modeling.compression import get_compression
from ..modeling.create import create_norm
from .estimate import as_labels, as_matrix, permutation
from .neighbours import neighbour_accuracy
from .renyi import entropy_of, gram, median_bandwidth, soft_entropy

NORMS = ("layernorm", "ibnorm-l", "ibnorm-t", "ibnorm-s")


def fixed_data(
    *,
    scale: float = 1.0,
    outliers: int = 0,
    samples: int = 1200,
    classes: int = 16,
    width: int = 256,
    degrees: float = 4.0,
    outlier_factor: float = 6.0,
    mean_spread: float = 0.5,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Heavy-tailed random classes: features (samples, width), float64, and labels (samples,), in equal parts.

    Student-t noise of ``degrees`` around Gaussian class means of standard deviation ``mean_spread``, all times
    ``scale``; the first ``outliers`` dimensions of the noise are ``outlier_factor`` times as wide, as outlier
    dimensions of language models are. ``mean_spread`` and ``outlier_factor`` are ours, chosen by hand so that
    LayerNorm's IB value with three outliers comes near 0.236 bits; the sizes of a table depend on them. That
    LayerNorm is below IBNorm-L, and that below IBNorm-T and IBNorm-S, held at each of the five choices that were
    tried; which of T and S is higher did not.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = mean_spread * normal(classes, width)
    labels = torch.arange(samples) % classes
    # A chi-square of whole degrees is a sum of squares, which a seeded generator can draw.
    chi_square = normal(samples, width, int(degrees)).square().sum(-1)
    noise = normal(samples, width) / (chi_square / int(degrees)).sqrt()
    noise[:, :outliers] *= outlier_factor
    return scale * (means[labels] + noise), labels


@dataclass(frozen=True)
class Row:
    """One norm on one input, nats: matrix Renyi terms, soft entropy, and a reader that goes by distance."""

    norm: str
    norm_lambda: float | None
    about_labels: float
    about_labels_shuffled: float
    about_input: float
    ib_value: float
    soft_entropy: float
    soft_entropy_shuffled: float
    neighbour_accuracy: float


def placebo(
    inputs: Any,
    labels: Any,
    norms: Iterable[str] = NORMS,
    *,
    beta: float = 0.5,
    alpha: float = 1.01,
    bandwidth: float | None = None,
    seed: int = 0,
) -> list[Row]:
    """Each norm on the same input, untrained: what a swap alone does to the figures.

    Args:
        inputs: (samples, width), captured in front of a norm, or ``fixed_data``.
        labels: (samples,), integers.
        norms: names that ``create_norm`` knows, at their default lambda.
        bandwidth: of T's kernel, one for all norms; None is the median distance of each norm's own output.

    Raises:
        ValueError: NaN, an unknown norm, a length that differs.
    """
    rows = as_matrix(inputs, "inputs")
    classes = as_labels(labels, len(rows))
    order = permutation(len(rows), seed)
    source, target = gram(rows, median_bandwidth(rows)), gram(classes, None)
    of_source, of_target = entropy_of(source, alpha), entropy_of(target, alpha)
    made = []
    for name in norms:
        norm = create_norm(name, rows.shape[1], norm_affine=False, dtype=torch.float64)
        with torch.no_grad():
            out = norm.eval()(rows)
        layer = gram(out, bandwidth)
        of_layer = entropy_of(layer, alpha)
        about_labels = of_layer + of_target - entropy_of(layer * target, alpha)
        about_shuffled = of_layer + of_target - entropy_of(layer * target[order][:, order], alpha)
        about_input = of_layer + of_source - entropy_of(layer * source, alpha)
        soft = soft_entropy(out, groups=0, seed=seed)
        made.append(
            Row(
                name,
                get_compression(name).default_lambda if name.startswith("ibnorm") else None,
                about_labels,
                about_shuffled,
                about_input,
                about_labels - beta * about_input,
                soft.value,
                soft.shuffled if soft.shuffled is not None else math.nan,
                neighbour_accuracy(out, classes),
            )
        )
    return made


def recover(z: Tensor, mean_x: Tensor, std_c: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """The input x of an IBNorm from its output and two scalars a token: nothing else was lost.

    The mean of c is not among them: it is the one number for which the deviations undone have mean 0, found by halving.

    Args:
        z: output before the affine part, (..., width), float64.
        mean_x: mean of x, (..., 1).
        std_c: what c was divided by, sqrt(var(c) + eps), (..., 1).
        inverse: undoes d -> lambda g(d / lambda), increasing; infinite beyond the bound of g.
    """
    c = z * std_c
    low, high = -c.amax(-1, keepdim=True), -c.amin(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        # A row beyond the bounds on both sides does not occur: c of a real token fits between them.
        above = inverse(c + middle).mean(-1, keepdim=True) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return mean_x + inverse(c + (low + high) / 2)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows as CSV, one a norm."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(vars(row) for row in rows)
