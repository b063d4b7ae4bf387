# SPDX-License-Identifier: Apache-2.0
"""Everything that is measured of one layer on one sample: information, the shape of activations, a reader by distance.

T is what the norm gave, X what it read, Y the label. I(X;T) itself is infinite, as the network is deterministic; in
its place stand the declared channel T + noise, and the matrix Renyi figure of the field, which is geometry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.shape import effective_rank, kurtosis, spread
from .estimate import Estimate, around
from .estimators import ESTIMATORS
from .information import noise_curve, usable_information
from .neighbours import neighbour_accuracy
from .renyi import RenyiPlane, soft_entropy

# Quantities that a difference is printed of: name, and what it is called.
QUANTITIES = {
    "usable": "I(Y;T), linear probe, nats",
    "channel": "I(T;T+noise), bound, nats",
    "ib": "IB value (ours), probe and channel, nats",
    "renyi_labels": "I(Y;T), matrix Renyi, nats",
    "renyi_input": "I(X;T), matrix Renyi, nats",
    "renyi_ib": "IB value (ours), matrix Renyi, nats",
    "renyi_ib_fixed": "IB value (ours), matrix Renyi, one bandwidth, nats",
    "soft": "soft entropy, nats",
    "neighbours": "accuracy of 5 nearest neighbours",
    "kurtosis": "kurtosis of a token's features",
    "effective_rank": "effective rank",
    "spread": "spread",
}


@dataclass(frozen=True)
class Options:
    """How a layer is measured.

    Args:
        samples: positions captured of each run.
        classes: labels are the most frequent ``classes - 1`` of the sample and one for the rest; 0 takes all. A
            function of Y: what is read of it is at most what is read of Y.
        noise: of the declared channel, in the units of T, for the IB value.
        noises: of its curve.
        beta: of the IB values.
        renyi_samples: the first of them, for the kernels: their figures depend on the number, so it is one for all.
        folds: of the probe.
        estimators: which of ``ESTIMATORS``.
        seed: of the sample, the folds, the shuffles and the anchors.
    """

    samples: int = 2048
    classes: int = 64
    noise: float = 1.0
    noises: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    beta: float = 0.5
    renyi_samples: int = 256
    folds: int = 3
    estimators: tuple[str, ...] = ESTIMATORS
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def frequent(labels: Tensor, classes: int) -> Tensor:
    """(samples,) labels -> 0 for the most frequent and so on, ``classes - 1`` for all the rest; 0 classes keep all.

    Of two that are as frequent, the lower label comes first.
    """
    values, place, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    if classes <= 0 or len(values) <= classes:
        return place
    rank = torch.empty_like(counts)
    rank[torch.argsort(counts, descending=True, stable=True)] = torch.arange(len(counts))
    return rank.clamp(max=classes - 1)[place]


def plane_of(inputs: Tensor, labels: Tensor, options: Options) -> RenyiPlane | None:
    """What the Renyi figures of every T with these X and Y have in common; None where they are not asked for."""
    if "renyi" not in options.estimators:
        return None
    return RenyiPlane(labels[: options.renyi_samples], inputs[: options.renyi_samples])


def measure(
    features: Tensor,
    inputs: Tensor,
    labels: Tensor,
    options: Options,
    *,
    intervals: bool = True,
    plane: RenyiPlane | None = None,
) -> dict[str, dict[str, Any]]:
    """What ``options.estimators`` say of one layer, and its shape.

    Args:
        features, inputs, labels: T and X, (samples, width), and Y, (samples,), already made ``frequent``.
        intervals: also intervals and shuffled values, which take most of the time.
        plane: ``plane_of`` the inputs and labels, where several T share them.

    Returns:
        a name of ``QUANTITIES``, or ``channel@NOISE``, to ``value``, ``interval``, ``shuffled`` (None: not measured).
    """
    seed, wanted = options.seed, options.estimators
    found: dict[str, Estimate] = {}
    if "usable" in wanted:
        found["usable"] = usable_information(features, labels, folds=options.folds, seed=seed, shuffle=intervals)
    if "channel" in wanted:
        curve = noise_curve(features, (*options.noises, options.noise), seed=seed)
        found |= {f"channel@{noise:g}": estimate for noise, estimate in curve.items()}
        found["channel"] = curve[options.noise]
        if "usable" in wanted:
            found["ib"] = _ib(found["usable"], found["channel"], options.beta)
    part = slice(0, options.renyi_samples)
    if "renyi" in wanted:
        plane = plane or RenyiPlane(labels[part], inputs[part])
        groups = 10 if intervals else 0
        own = plane.of(features[part], beta=options.beta, groups=groups, seed=seed)
        found |= {f"renyi_{name}": estimate for name, estimate in own.items()}
        # The distance of two standardized rows that have nothing in common.
        one = math.sqrt(2 * features.shape[1])
        found["renyi_ib_fixed"] = plane.of(features[part], beta=options.beta, groups=0, seed=seed, bandwidth=one)["ib"]
    if "soft" in wanted:
        found["soft"] = soft_entropy(features, groups=10 if intervals else 0, seed=seed)
    out = {name: _plain(estimate, intervals) for name, estimate in found.items()}
    if "neighbours" in wanted:
        out["neighbours"] = _bare(neighbour_accuracy(features.double(), labels))
    out |= {f.__name__: _bare(f(features)) for f in (kurtosis, effective_rank, spread)}
    return out


def _ib(about_labels: Estimate, about_input: Estimate, beta: float) -> Estimate:
    """As ``ib_value``, of two estimates that are there."""
    value = about_labels.value - beta * about_input.value
    errors = [(e.interval[1] - e.interval[0]) / 3.92 for e in (about_labels, about_input) if e.interval is not None]
    error = math.hypot(errors[0], beta * errors[1]) if len(errors) == 2 else None
    shuffled = None if about_labels.shuffled is None else about_labels.shuffled - beta * about_input.value
    return Estimate("IB value (ours)", value, around(value, error), shuffled, about_labels.samples, about_labels.seed)


def _plain(estimate: Estimate, intervals: bool) -> dict[str, Any]:
    interval = None if estimate.interval is None or not intervals else list(estimate.interval)
    return {"value": estimate.value, "interval": interval, "shuffled": estimate.shuffled if intervals else None}


def _bare(value: float) -> dict[str, Any]:
    return {"value": value, "interval": None, "shuffled": None}


def value_of(measured: Mapping[str, Any], name: str) -> float:
    """The number under a name; NaN where it was not measured."""
    return float(measured[name]["value"]) if name in measured else math.nan
