# SPDX-License-Identifier: Apache-2.0
"""The shape of activations in three numbers: how far out their tails reach, how many directions they fill, how wide."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kurtosis(rows: Tensor) -> float:
    """Mean over rows of (samples, width) of the fourth moment of a row, standardized: 3 for Gaussian features.

    Of a row, not of a column: it says how much a token stands out in a few of its features. 0 where every row is
    constant; constant rows are left out.
    """
    centred = rows.double() - rows.double().mean(1, keepdim=True)
    variance = centred.square().mean(1)
    moving = variance > 0
    if not bool(moving.any()):
        return 0.0
    return float((centred[moving].pow(4).mean(1) / variance[moving].square()).mean())


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the shares of the covariance's eigenvalues (Roy and Vetterli 2007): 1 to the width.

    (samples, width); 0 where nothing varies, NaN where something is not finite.
    """
    centred = rows.double() - rows.double().mean(0)
    # The smaller of the two products: they share their eigenvalues but for zeros.
    product = centred.T @ centred if len(rows) > rows.shape[1] else centred @ centred.T
    if not bool(torch.isfinite(product).all()):
        return math.nan
    spectrum = torch.linalg.eigvalsh(product).clamp(min=0)
    total = spectrum.sum()
    return float(torch.special.entr(spectrum / total).sum().exp()) if total > 0 else 0.0


def spread(rows: Tensor) -> float:
    """Root mean square deviation of the features of (samples, width) from the mean of their row."""
    return float((rows.double() - rows.double().mean(1, keepdim=True)).square().mean().sqrt())


def share_beyond(rows: Tensor, bound: float) -> float:
    """Share of the features of (samples, width) whose deviation from the mean of their row is above a bound."""
    return float(((rows - rows.mean(1, keepdim=True)).abs() > bound).double().mean())
