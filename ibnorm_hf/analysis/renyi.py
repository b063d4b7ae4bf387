# SPDX-License-Identifier: Apache-2.0
"""The matrix-based Renyi estimator and the soft entropy: what the field prints, comparable with nothing else.

Both are geometry as much as information: they are not zero for independent data, they move under a map of X alone,
and they move when only a norm is swapped on fixed random data. Read them beside their shuffled value and a placebo.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .estimate import Estimate, around, as_labels, as_matrix, jackknife_error, permutation, shuffled_columns


def median_bandwidth(features: Any) -> float:
    """Median pairwise distance of the rows of (samples, width); 1 where it is 0, as in a constant layer."""
    rows = as_matrix(features, "features")
    return (float(torch.pdist(rows).median()) if len(rows) > 1 else 0.0) or 1.0


def gram(features: Tensor, bandwidth: float | None) -> Tensor:
    """Gaussian kernel exp(-d^2 / (2 bandwidth^2)) of float64 rows, or 1 where integer labels agree; trace 1."""
    if features.ndim == 1:
        kernel = (features[:, None] == features[None]).to(torch.float64)
    else:
        width = median_bandwidth(features) if bandwidth is None else bandwidth
        if not 0 < width < math.inf:
            raise ValueError(f"bandwidth must be a finite number above 0, got {width!r}.")
        distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = torch.exp(-((distance / width) ** 2) / 2)
    return kernel / len(kernel)


def entropy_of(matrix: Tensor, alpha: float) -> float:
    """Renyi entropy, ln(sum of eigenvalues^alpha) / (1 - alpha), of a symmetric matrix scaled to trace 1."""
    if not (alpha > 0 and alpha != 1):
        raise ValueError(f"alpha must be above 0 and other than 1, got {alpha!r}.")
    spectrum = torch.linalg.eigvalsh(matrix / matrix.trace()).clamp(min=0)
    return max(0.0, float(spectrum.pow(alpha).sum().log()) / (1 - alpha))


def _information(a: Tensor, b: Tensor, alpha: float) -> float:
    return entropy_of(a, alpha) + entropy_of(b, alpha) - entropy_of(a * b, alpha)


def matrix_entropy(
    features: Any, *, alpha: float = 1.01, bandwidth: float | None = None, groups: int = 10, seed: int = 0
) -> Estimate:
    """Matrix-based Renyi entropy of (samples, width), nats (Giraldo, Rao and Principe, arXiv:1211.2459).

    Args:
        alpha: order of the entropy.
        bandwidth: of the Gaussian kernel; None is the median pairwise distance. Give one number to all arms as well.
        groups: of the jackknife behind the interval; below 2 there is none.

    The shuffled value has every column shuffled on its own. One sample or a constant layer is an exact 0.

    Raises:
        ValueError: NaN or infinity, a bandwidth or an alpha out of range.
    """
    rows = as_matrix(features, "features")
    kernel = gram(rows, bandwidth)
    value = entropy_of(kernel, alpha)
    error = jackknife_error(lambda kept: entropy_of(kernel[kept][:, kept], alpha), len(rows), groups, seed)
    shuffled = entropy_of(gram(shuffled_columns(rows, seed), bandwidth), alpha)
    return Estimate(f"matrix Renyi entropy, alpha {alpha:g}", value, around(value, error), shuffled, len(rows), seed)


def matrix_mutual_information(
    a: Any,
    b: Any,
    *,
    alpha: float = 1.01,
    bandwidth: float | None = None,
    bandwidth_b: float | None = None,
    groups: int = 10,
    seed: int = 0,
) -> Estimate:
    """Matrix-based Renyi mutual information S(A) + S(B) - S(A o B), nats. Not zero for independent data.

    Args:
        a: (samples, width).
        b: (samples, width), or integer labels (samples,), whose kernel is 1 where they agree.
        bandwidth, bandwidth_b: of the two kernels; None is the median pairwise distance of each.
        groups: of the jackknife behind the interval; below 2 there is none.

    The shuffled value pairs a with permuted b. One sample, one class or a constant layer is an exact 0.

    Raises:
        ValueError: NaN or infinity, unequal lengths, a bandwidth or an alpha out of range.
    """
    rows = as_matrix(a, "a")
    other = torch.as_tensor(b)
    labelled = other.ndim == 1 and not other.is_floating_point()
    other = as_labels(other, len(rows)) if labelled else as_matrix(b, "b")
    if len(other) != len(rows):
        raise ValueError(f"a has {len(rows)} samples and b {len(other)}; they must be pairs.")
    first, second = gram(rows, bandwidth), gram(other, bandwidth_b)
    value = _information(first, second, alpha)

    def without(kept: Tensor) -> float:
        return _information(first[kept][:, kept], second[kept][:, kept], alpha)

    error = jackknife_error(without, len(rows), groups, seed)
    order = permutation(len(rows), seed)
    shuffled = _information(first, second[order][:, order], alpha)
    name = f"matrix Renyi mutual information, alpha {alpha:g}"
    return Estimate(name, value, around(value, error), shuffled, len(rows), seed)


def soft_entropy(
    features: Any, *, anchors: int = 128, epsilon: float = 0.1, groups: int = 10, seed: int = 0
) -> Estimate:
    """Entropy of the mean soft assignment of directions to random anchors on the sphere, nats, at most ln(anchors).

    Each row of (samples, width) is assigned by softmax(cosine / epsilon). A positive factor changes nothing; a row of
    zeros, which has no direction, is spread evenly. A constant layer gives the entropy of its one assignment, not 0.
    The shuffled value has every column shuffled on its own.

    Raises:
        ValueError: NaN or infinity, fewer than two anchors, an epsilon that is not above 0.
    """
    rows = as_matrix(features, "features")
    if anchors < 2 or not epsilon > 0:
        raise ValueError(f"soft entropy needs two anchors and epsilon above 0, got {anchors} and {epsilon!r}.")
    generator = torch.Generator().manual_seed(seed)
    sphere = torch.randn(anchors, rows.shape[1], generator=generator, dtype=torch.float64)
    sphere = sphere / sphere.norm(dim=1, keepdim=True)

    def assign(points: Tensor) -> Tensor:
        # Divided by the largest entry first, so that no factor overflows or underflows in the square of the norm.
        largest = points.abs().amax(1, keepdim=True)
        unit = points / torch.where(largest > 0, largest, torch.ones_like(largest))
        unit = unit / unit.norm(dim=1, keepdim=True).clamp(min=1)
        return torch.softmax(unit @ sphere.T / epsilon, dim=1)

    def entropy(weights: Tensor) -> float:
        return float(torch.special.entr(weights.mean(0)).sum())

    weights = assign(rows)
    value = entropy(weights)
    error = jackknife_error(lambda kept: entropy(weights[kept]), len(rows), groups, seed)
    shuffled = entropy(assign(shuffled_columns(rows, seed)))
    return Estimate("soft entropy", value, around(value, error), shuffled, len(rows), seed)


class RenyiPlane:
    """I(Y;T), I(X;T) and their IB value by the matrix Renyi estimator, for many T of one Y and X.

    What ``matrix_mutual_information`` gives for each pair, without solving the same eigenvalue problems again.

    Args:
        labels, inputs: Y (samples,) integers, and X (samples, width of X), whose bandwidth is always its own median.
        alpha: order of the entropy.

    Raises:
        ValueError: NaN or infinity, unequal lengths.
    """

    def __init__(self, labels: Any, inputs: Any, *, alpha: float = 1.01) -> None:
        source = as_matrix(inputs, "inputs")
        self.alpha, self.samples = alpha, len(source)
        self.kernels = gram(as_labels(labels, len(source)), None), gram(source, None)
        self.entropies = [entropy_of(kernel, alpha) for kernel in self.kernels]

    def of(
        self, features: Any, *, beta: float = 0.5, bandwidth: float | None = None, groups: int = 10, seed: int = 0
    ) -> dict[str, Estimate]:
        """``labels``, ``input`` and ``ib`` of T, (samples, width), with the intervals of one jackknife.

        Args:
            bandwidth: of T's kernel; None is its median distance.
            groups: of the jackknife; below 2 there is neither interval nor shuffled value.

        The shuffled value shuffles the labels, so that of ``input`` is None.
        """
        rows = as_matrix(features, "features")
        if len(rows) != self.samples:
            raise ValueError(f"features have {len(rows)} samples and inputs {self.samples}; they must be pairs.")
        layer = gram(rows, bandwidth)
        of_layer = entropy_of(layer, self.alpha)
        about = [
            of_layer + own - entropy_of(layer * kernel, self.alpha)
            for own, kernel in zip(self.entropies, self.kernels, strict=True)
        ]
        parts = {"labels": (1.0, 0.0), "input": (0.0, 1.0), "ib": (1.0, -beta)}
        shuffled, errors = None, dict.fromkeys(parts)
        if groups >= 2:
            order = permutation(self.samples, seed)
            mixed = self.kernels[0][order][:, order]
            shuffled = of_layer + self.entropies[0] - entropy_of(layer * mixed, self.alpha)
            errors = self._errors(layer, parts, groups, seed)
        found = {}
        for name, (one, two) in parts.items():
            value = one * about[0] + two * about[1]
            nothing = None if shuffled is None or name == "input" else one * shuffled + two * about[1]
            title = f"matrix Renyi {name}, alpha {self.alpha:g}"
            found[name] = Estimate(title, value, around(value, errors[name]), nothing, self.samples, seed)
        return found

    def _errors(self, layer: Tensor, parts: dict[str, tuple[float, float]], groups: int, seed: int) -> dict[str, Any]:
        """Standard errors of the parts, all by the same replicates."""
        replicates: dict[tuple[int, ...], list[float]] = {}

        def replicate(kept: Tensor) -> list[float]:
            key = tuple(kept.tolist())
            if key not in replicates:
                t, y, x = (kernel[kept][:, kept] for kernel in (layer, *self.kernels))
                of_t = entropy_of(t, self.alpha)
                replicates[key] = [
                    of_t + entropy_of(other, self.alpha) - entropy_of(t * other, self.alpha) for other in (y, x)
                ]
            return replicates[key]

        def error(one: float, two: float) -> float | None:
            return jackknife_error(
                lambda kept: one * replicate(kept)[0] + two * replicate(kept)[1], self.samples, groups, seed
            )

        return {name: error(*weights) for name, weights in parts.items()}
