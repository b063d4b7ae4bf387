# SPDX-License-Identifier: Apache-2.0
"""What a layer holds about its labels and its input, in nats and float64. Nothing here is the paper's estimator.

A network is deterministic: for continuous inputs I(X;T) is infinite (Amjad and Geiger, arXiv:1802.09766).
A finite figure belongs to a declared noisy channel, or is a lower bound by a probe, or is geometry (``renyi.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .estimate import Estimate, around, as_labels, as_matrix, permutation
from .neighbours import knn_mutual_information
from .renyi import matrix_entropy, matrix_mutual_information, soft_entropy

__all__ = [
    "Estimate",
    "channel_information",
    "ib_value",
    "knn_mutual_information",
    "matrix_entropy",
    "matrix_mutual_information",
    "noise_curve",
    "soft_entropy",
    "usable_information",
]


def usable_information(
    features: Any,
    labels: Any,
    *,
    folds: int = 5,
    seed: int = 0,
    penalties: Sequence[float] = (1e-3, 1e-1),
    iterations: int = 30,
    shuffle: bool = True,
) -> Estimate:
    """What a linear probe can read of the labels, nats a sample: a lower bound of I(Y;T) (Xu et al. 2020).

    H(Y) is the cross-fitted cross-entropy of the class frequencies (a half added to each count); from it goes the
    cross-fitted cross-entropy of a softmax probe. In each fold a fifth of the training part chooses the penalty, or
    no probe at all unless one gains more than its standard error; features are standardized by the training part.
    The value is at most the plug-in H(Y). The shuffled value permutes the labels. A probe is searched in float32 and
    judged in float64: the bound holds for whatever probe was found.

    Args:
        features: (samples, width).
        labels: (samples,), integers of any range.
        folds: parts of the cross-fit, at least 2; no more than there are samples.
        penalties: L2 on the probe's weights among which each fold chooses.
        iterations: of L-BFGS, at most, a probe.
        shuffle: measure the shuffled value, which takes as long as the value; None stands for it otherwise.

    One sample, one class or a constant layer is an exact 0.

    Raises:
        ValueError: NaN or infinity, a length that differs, fewer than two folds.
    """
    rows = as_matrix(features, "features")
    classes = as_labels(labels, len(rows))
    samples = len(rows)
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}.")
    name = "usable information of a linear probe"
    if samples == 1 or int(classes.max()) == 0 or bool((rows == rows[0]).all()):
        return Estimate(name, 0.0, (0.0, 0.0), 0.0, samples, seed)
    gains = _gains(rows, classes, min(folds, samples), seed, penalties, iterations)
    frequency = torch.bincount(classes) / samples
    value = min(float(gains.mean()), float(torch.special.entr(frequency.double()).sum()))
    error = float(gains.std()) / math.sqrt(samples)
    shuffled = None
    if shuffle:
        mixed = classes[permutation(samples, seed + 1)]
        shuffled = float(_gains(rows, mixed, min(folds, samples), seed, penalties, iterations).mean())
    return Estimate(name, value, around(value, error), shuffled, samples, seed)


def _gains(rows: Tensor, classes: Tensor, folds: int, seed: int, penalties: Sequence[float], iterations: int) -> Tensor:
    """ln of the probe's probability over that of the class frequencies, out of fold, (samples,)."""
    order = permutation(len(rows), seed)
    count = int(classes.max()) + 1
    gains = torch.zeros(len(rows), dtype=torch.float64)
    for fold in range(folds):
        test = order[fold::folds]
        train = torch.cat([order[other::folds] for other in range(folds) if other != fold])
        cut = max(1, len(train) // 5)
        choose, fit = train[:cut], train[cut:]
        if not len(fit):
            continue
        spread, mean = torch.std_mean(rows[fit], 0, correction=0)
        scaled = (rows - mean) / torch.where(spread > 0, spread, torch.ones_like(spread))
        frequency = torch.bincount(classes[fit], minlength=count) + 0.5
        prior = (frequency / frequency.sum()).double().log()
        best = 0.0
        for penalty in penalties:
            logits = _probe(scaled[fit], classes[fit], prior, penalty, iterations)
            gained = _gain(logits, scaled[choose], classes[choose], prior)
            lead = float(gained.mean()) - (float(gained.std()) / math.sqrt(cut) if cut > 1 else math.inf)
            if lead > best:
                best, gains[test] = lead, _gain(logits, scaled[test], classes[test], prior)
    return gains


def _gain(probe: tuple[Tensor, Tensor], rows: Tensor, classes: Tensor, prior: Tensor) -> Tensor:
    weight, bias = probe
    return -cross_entropy(rows @ weight + bias, classes, reduction="none") - prior[classes]


def _probe(rows: Tensor, classes: Tensor, prior: Tensor, penalty: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Weight (width, classes) and bias (classes,) of a penalized softmax regression that starts from the prior."""
    narrow, each = rows.float(), torch.arange(len(rows))
    weight = narrow.new_zeros(rows.shape[1], len(prior)).requires_grad_()
    bias = prior.float().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    @torch.no_grad()
    def closure() -> Tensor:
        # The gradient is written out: with thousands of classes, autograd would hold the logits three times.
        logs = torch.log_softmax(narrow @ weight + bias, 1)
        loss = penalty / 2 * weight.square().sum() - logs[each, classes].mean()
        excess = logs.exp_()
        excess[each, classes] -= 1
        excess /= len(rows)
        weight.grad, bias.grad = narrow.T @ excess + penalty * weight, excess.sum(0)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach().to(rows.dtype), bias.detach().to(rows.dtype)


def channel_information(features: Any, noise: float, *, seed: int = 0) -> Estimate:
    """At most this much passes through the declared channel T + N(0, noise^2): 0.5 log det(I + cov / noise^2), nats.

    Exact for a Gaussian T, an upper bound of I(T; T + noise) for any other T of that covariance. It is a statement on
    the channel: without noise, I(X;T) of a deterministic network is infinite. Ask for several levels to get a curve.
    The interval is by the delta method. Shuffled pairs share nothing by construction: the shuffled value is 0.

    Args:
        features: (samples, width).
        noise: standard deviation of the channel, above 0, in the units of the features.

    One sample or a constant layer is an exact 0.

    Raises:
        ValueError: NaN or infinity, a noise that is not a finite number above 0.
    """
    rows = as_matrix(features, "features")
    if not 0 < noise < math.inf:
        raise ValueError(f"noise must be a finite standard deviation above 0, got {noise!r}.")
    samples, width = rows.shape
    name = f"information through a Gaussian channel of noise {noise:g}"
    if samples == 1 or bool((rows == rows[0]).all()):
        return Estimate(name, 0.0, (0.0, 0.0), 0.0, samples, seed)
    centred = (rows - rows.mean(0)) / noise
    through = torch.eye(width, dtype=torch.float64) + centred.T @ centred / (samples - 1)
    factor = torch.linalg.cholesky(through)
    value = float(factor.diagonal().log().sum())
    local = torch.cholesky_solve(centred.T, factor).T.mul(centred).sum(1) / 2
    return Estimate(name, value, around(value, float(local.std()) / math.sqrt(samples)), 0.0, samples, seed)


def noise_curve(features: Any, noises: Sequence[float], *, seed: int = 0) -> dict[float, Estimate]:
    """``channel_information`` at several noise levels, ascending: how fast what passes falls as the channel worsens.

    Raises:
        ValueError: as ``channel_information``, or no level is given.
    """
    if not noises:
        raise ValueError("noises must name at least one level.")
    return {noise: channel_information(features, noise, seed=seed) for noise in sorted(set(noises))}


def ib_value(
    features: Any,
    labels: Any,
    *,
    beta: float = 0.5,
    noise: float | None = None,
    inputs: Any = None,
    seed: int = 0,
    **options: Any,
) -> Estimate:
    """IB value (ours): I(Y;T) - beta I(X;T), nats. Name exactly one of ``noise`` and ``inputs``.

    Args:
        features, labels: T, (samples, width), and Y, (samples,).
        beta: in [0, 1].
        noise: I(Y;T) is the probe's, I(X;T) that of the channel of this noise.
        inputs: X, (samples, width of X): both terms are the matrix Renyi estimates.
        options: passed on to ``usable_information``, or to ``matrix_mutual_information``.

    The shuffled value shuffles the labels and leaves I(X;T) as it is. The interval adds the two in quadrature.

    Raises:
        ValueError: beta out of range, both or neither of noise and inputs, and what the estimators refuse.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta!r}.")
    if (noise is None) == (inputs is None):
        raise ValueError("name exactly one of noise (probe and channel) and inputs (matrix Renyi).")
    if noise is not None:
        about_labels = usable_information(features, labels, seed=seed, **options)
        about_input = channel_information(features, noise, seed=seed)
    else:
        about_labels = matrix_mutual_information(features, labels, seed=seed, **options)
        about_input = matrix_mutual_information(features, inputs, seed=seed, **options)
    value = about_labels.value - beta * about_input.value
    shuffled = None if about_labels.shuffled is None else about_labels.shuffled - beta * about_input.value
    error = None
    if about_labels.interval is not None and about_input.interval is not None:
        error = math.hypot(_error(about_labels.interval), beta * _error(about_input.interval))
    return Estimate("IB value (ours)", value, around(value, error), shuffled, about_labels.samples, seed)


def _error(interval: tuple[float, float]) -> float:
    return (interval[1] - interval[0]) / 2 / 1.96
