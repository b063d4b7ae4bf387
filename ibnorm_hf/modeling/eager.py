# SPDX-License-Identifier: Apache-2.0
"""IBNorm in plain torch operations: what runs everywhere, and what torch.compile fuses."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .compression import Compression


class Kernels(NamedTuple):
    """One way to compute IBNorm; every backend has the signatures of ``forward`` and ``backward`` below."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]]


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float, order: str
) -> tuple[Tensor, Tensor]:
    """(y, statistics): y of x's shape and dtype; statistics (3 or 2, ..., 1) in float32, or float64 for float64 x.

    Compress-first keeps mean(x), mean(c) and 1/std(c); standardize-first keeps mean(x) and 1/std(x).
    """
    x32 = _at_least_float32(x)
    if order == "compress-first":
        mean_x = x32.mean(-1, keepdim=True)
        c = lam * compression.g((x32 - mean_x) / lam)
        mean_c, rstd = _moments(c, eps)
        z = (c - mean_c) * rstd
        statistics = torch.stack((mean_x, mean_c, rstd))
    else:
        mean_x, rstd = _moments(x32, eps)
        z = lam * compression.g((x32 - mean_x) * rstd / lam)
        statistics = torch.stack((mean_x, rstd))
    if weight is not None:
        z = z * weight
    if bias is not None:
        z = z + bias
    return z.to(x.dtype), statistics


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    compression: Compression,
    lam: float,
    order: str,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias), None where not ``wanted``; dx in x's dtype, the others (width,) in the statistics'."""
    x32, dy32 = _at_least_float32(x), _at_least_float32(dy)
    dz = dy32 if weight is None else dy32 * weight
    dx = None
    if order == "compress-first":
        mean_x, mean_c, rstd = statistics.unbind()
        u = (x32 - mean_x) / lam
        s = compression.g(u)
        out = (lam * s - mean_c) * rstd
        if wanted[0]:
            dc = _standardize_backward(dz, out, rstd)
            dd = compression.dg(u, s) * dc
            dx = (dd - dd.mean(-1, keepdim=True)).to(x.dtype)
    else:
        mean_x, rstd = statistics.unbind()
        h = (x32 - mean_x) * rstd
        u = h / lam
        s = compression.g(u)
        out = lam * s
        if wanted[0]:
            dx = _standardize_backward(compression.dg(u, s) * dz, h, rstd).to(x.dtype)
    dweight = _sum_of_rows(dy32 * out) if wanted[1] else None
    dbias = _sum_of_rows(dy32) if wanted[2] else None
    return dx, dweight, dbias


def _sum_of_rows(t: Tensor) -> Tensor:
    # Not flattened first: a tensor sharded unevenly over its leading dimension cannot be.
    return t.sum(tuple(range(t.dim() - 1))) if t.dim() > 1 else t.clone()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _moments(c: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    # Two plain means: inductor turns var_mean into a slower one-pass update.
    mean = c.mean(-1, keepdim=True)
    d = c - mean
    return mean, torch.rsqrt((d * d).mean(-1, keepdim=True) + eps)


def _standardize_backward(dz: Tensor, z: Tensor, rstd: Tensor) -> Tensor:
    return rstd * (dz - dz.mean(-1, keepdim=True) - z * (dz * z).mean(-1, keepdim=True))


EAGER = Kernels(forward, backward)
