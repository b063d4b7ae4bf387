# SPDX-License-Identifier: Apache-2.0
"""Mutual information by nearest neighbours, for the few dimensions in which that works, and a reader by distance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.spatial import cKDTree
from scipy.special import digamma, ndtri
from scipy.stats import rankdata
from torch import Tensor

from .estimate import Estimate, around, as_matrix, permutation

MOST_DIMENSIONS = 8
PARTS = 5


def knn_mutual_information(x: Any, y: Any, *, k: int = 5, seed: int = 0) -> Estimate:
    """Mutual information of continuous x and y, nats (Kraskov, Stoegbauer and Grassberger 2004, estimator 1).

    Every coordinate goes to its normal scores first, a bijection that leaves the truth as it is and makes the estimate
    blind to any increasing map of a coordinate. The local terms depend on each other, so the interval is the wider of
    two: that of the terms as if they did not, and Student's of five parts of the sample (Holmes and Nemenman 2019).

    Args:
        x, y: (samples,) or (samples, width), at most 8 dimensions together.
        k: the neighbour whose distance is the radius.

    A constant side is an exact 0.

    Raises:
        ValueError: NaN, unequal lengths, k or fewer samples (one sample among them), more than 8 joint dimensions,
            where the estimator is known to fail (truth 3 nats, 64 + 64 dimensions: 0.14), or a discrete coordinate.
    """
    first, second = as_matrix(x, "x").numpy(), as_matrix(y, "y").numpy()
    samples = len(first)
    if samples != len(second):
        raise ValueError(f"x has {samples} samples and y {len(second)}; they must be pairs.")
    if k < 1 or samples <= k:
        raise ValueError(f"k = {k} neighbours need k of at least 1 and more than k samples, got {samples}.")
    joint = first.shape[1] + second.shape[1]
    if joint > MOST_DIMENSIONS:
        raise ValueError(f"{joint} joint dimensions: nearest neighbours fail beyond {MOST_DIMENSIONS}; use a probe.")
    name = f"nearest-neighbour mutual information, k {k}"
    if any((side == side[0]).all() for side in (first, second)):
        return Estimate(name, 0.0, (0.0, 0.0), 0.0, samples, seed)
    first, second = _normal_scores(first, "x"), _normal_scores(second, "y")
    terms = _terms(first, second, k)
    value = float(terms.mean())
    shuffled = float(_terms(first, second[permutation(samples, seed).numpy()], k).mean())
    error = float(terms.std()) / math.sqrt(samples)
    if samples > PARTS * k:
        order = permutation(samples, seed).numpy()
        parts = [_terms(first[order[i::PARTS]], second[order[i::PARTS]], k).mean() for i in range(PARTS)]
        between = float(np.std(parts, ddof=1)) / math.sqrt(PARTS)
        error = max(error, between * float(stats.t.ppf(0.975, PARTS - 1)) / 1.96)
    return Estimate(name, value, around(value, error), shuffled, samples, seed)


def _normal_scores(side: np.ndarray, name: str) -> np.ndarray:
    for column in side.T:
        if len(np.unique(column)) < 0.9 * len(column) and not (column == column[0]).all():
            raise ValueError(
                f"{name} has a coordinate whose values repeat; for a discrete side use usable_information."
            )
    return ndtri((rankdata(side, axis=0) - 0.5) / len(side))


def _terms(x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """The local terms whose mean is the estimate, (samples,)."""
    joint = np.hstack([x, y])
    radius = cKDTree(joint).query(joint, k=k + 1, p=np.inf)[0][:, -1]
    inside = np.nextafter(radius, 0)  # strictly inside
    counts = [cKDTree(side).query_ball_point(side, inside, p=np.inf, return_length=True) for side in (x, y)]
    # A count holds the point itself: it is n + 1 in the paper's terms.
    return digamma(k) + digamma(len(x)) - digamma(counts[0]) - digamma(counts[1])


def neighbour_accuracy(features: Tensor, labels: Tensor, k: int = 5) -> float:
    """Share of (samples, width) whose class wins among the k nearest others; a tie goes to the lower class."""
    distance = torch.cdist(features, features).fill_diagonal_(math.inf)
    near = labels[distance.topk(min(k, len(labels) - 1), largest=False).indices]
    return float((near.mode(1).values == labels).double().mean())
