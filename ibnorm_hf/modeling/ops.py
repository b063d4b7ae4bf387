# SPDX-License-Identifier: Apache-2.0
"""Forward and backward as operators of torch's library, for everything that records operators instead of running them.

Compiled graphs, selective activation checkpointing, fake tensors and ``torch.export`` see one opaque node a direction,
``ibnorm_hf::forward`` and ``ibnorm_hf::backward``, whose value the same kernel computes as in eager mode. A program
that holds them loads where these files are imported; ``run_decompositions`` and the ONNX exporter replace them by
plain operations.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .compression import get_compression
from .dispatch import plain_kernels
from .eager import EAGER, Kernels
from .private_torch import keep_in_inductor, register_decomposition

_SCHEMAS = {
    "forward": "(Tensor x, Tensor? weight, Tensor? bias, str norm_type, Tensor lam, float eps, str order) "
    "-> (Tensor, Tensor)",
    "backward": "(Tensor dy, Tensor x, Tensor? weight, Tensor statistics, str norm_type, Tensor lam, str order, "
    "bool want_dx, bool want_dweight, bool want_dbias) -> (Tensor, Tensor, Tensor)",
}


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm_type: str, lam: Tensor, eps: float, order: str
) -> tuple[Tensor, Tensor]:
    compression = get_compression(norm_type)
    kernels = plain_kernels(x, compression, order, None, weight, bias)
    y, statistics = kernels.forward(x, weight, bias, compression, lam.item(), eps, order)
    return y.contiguous(), statistics.contiguous()


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    norm_type: str,
    lam: Tensor,
    order: str,
    want_dx: bool,
    want_dweight: bool,
    want_dbias: bool,
) -> tuple[Tensor, ...]:
    compression = get_compression(norm_type)
    kernels = plain_kernels(x, compression, order, None, weight, dy)
    wanted = (want_dx, want_dweight, want_dbias)
    found = kernels.backward(dy, x, weight, statistics, compression, lam.item(), order, wanted)
    return tuple(
        t.contiguous() if t is not None and want else x.new_empty(0, dtype=dtype)
        for t, want, dtype in zip(found, wanted, (x.dtype, statistics.dtype, statistics.dtype), strict=True)
    )


@functools.cache
def _kept_by_inductor() -> None:
    """Have inductor call the forward operator as it stands although it has a decomposition, which is for exporters.

    Where the variable ``CI`` is set, inductor otherwise refuses such an operator (``make_fallback`` in its lowering).
    """
    keep_in_inductor("ibnorm_hf::forward")


def _forward_shapes(x: Tensor, weight: Any, bias: Any, norm_type: str, lam: Tensor, eps: float, order: str) -> Any:
    _kept_by_inductor()  # whatever inductor lowers was traced by these shapes before
    count = 3 if order == "compress-first" else 2
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, torch.empty((count, *x.shape[:-1], 1), dtype=dtype, device=x.device)


def _backward_shapes(
    dy: Tensor, x: Tensor, weight: Any, statistics: Tensor, norm_type: str, lam: Tensor, order: str, *wanted: bool
) -> tuple[Tensor, ...]:
    shapes = (x.shape, x.shape[-1:], x.shape[-1:])
    return tuple(
        torch.empty(shape if want else (0,), dtype=dtype, device=x.device)
        for shape, want, dtype in zip(shapes, wanted, (x.dtype, statistics.dtype, statistics.dtype), strict=True)
    )


def _plain_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm_type: str, lam: Tensor, eps: float, order: str
) -> tuple[Tensor, ...]:
    return EAGER.forward(x, weight, bias, get_compression(norm_type), lam.to(x.device), eps, order)


def _define() -> None:
    # Files copied beside a checkpoint define the same operators; the first copy that a process loads does so for all.
    if hasattr(torch.ops.ibnorm_hf, "backward"):
        return
    library = torch.library.Library("ibnorm_hf", "FRAGMENT")
    kernels: dict[str, Callable[..., Any]] = {"forward": _forward, "backward": _backward}
    shapes: dict[str, Callable[..., Any]] = {"forward": _forward_shapes, "backward": _backward_shapes}
    for name, schema in _SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
        library.impl(name, kernels[name], "CompositeExplicitAutograd")
        torch.library.register_fake(f"ibnorm_hf::{name}", shapes[name], lib=library)
    register_decomposition(torch.ops.ibnorm_hf.forward.default)(_plain_forward)
    _LIBRARY.append(library)  # what it registers lives as long as it does


_LIBRARY: list[torch.library.Library] = []
_define()


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Any, lam: float, eps: float, order: str
) -> tuple[Tensor, Tensor]:
    """As ``eager.forward``."""
    return torch.ops.ibnorm_hf.forward(x, weight, bias, compression.name, _scalar(lam), eps, order)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    compression: Any,
    lam: float,
    order: str,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As ``eager.backward``."""
    dx, dweight, dbias = torch.ops.ibnorm_hf.backward(
        dy, x, weight, statistics, compression.name, _scalar(lam), order, *wanted
    )
    return dx if wanted[0] else None, dweight if wanted[1] else None, dbias if wanted[2] else None


def _scalar(lam: float) -> Tensor:
    # A tensor: a compiled graph would be built anew for each value of a number, and lambda may change every step.
    return torch.ones((), dtype=torch.float64, device="cpu") * lam  # a product: a number that fills is built in


OPS = Kernels(forward, backward)
