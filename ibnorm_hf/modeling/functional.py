# SPDX-License-Identifier: Apache-2.0
"""``ib_norm``: the readable reference, and the default path that saves only x and three scalars a row."""

import os
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .compression import Compression, canonical_name, get_compression, unknown_name
from .eager import EAGER, Kernels
from .fused_cpu import FUSED_CPU, log_once, supports

NORM_ORDERS = ("compress-first", "standardize-first")
BACKENDS = ("reference", "eager", "compiled", "triton")


def check_lambda(norm_lambda: float) -> float:
    """Return lambda as a float; ValueError unless it is a finite number above 0 (the paper uses lambda >= 1).

    Beyond 1e-30 and 1e30 float32 would turn it into 0 or infinity; they are refused as well.
    """
    valid = isinstance(norm_lambda, int | float) and not isinstance(norm_lambda, bool)
    if not valid or not 1e-30 <= norm_lambda <= 1e30:
        raise ValueError(f"norm_lambda must be a finite number above 0, got {norm_lambda!r}.")
    return float(norm_lambda)


def check_order(norm_order: str) -> str:
    """Return the canonical name of an order; ValueError for an unknown one."""
    order = canonical_name(norm_order)
    if order not in NORM_ORDERS:
        raise unknown_name("norm_order", norm_order, NORM_ORDERS)
    return order


def check_backend(backend: str | None) -> str | None:
    """Return the canonical name of a backend, None for None; ValueError for an unknown one."""
    if backend is None:
        return None
    name = canonical_name(backend)
    if name not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    return name


_BACKEND = check_backend(os.environ.get("IBNORM_BACKEND") or None)


def ib_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm_type: str = "ibnorm-l",
    norm_lambda: float | None = None,
    eps: float = 1e-5,
    norm_order: str = "compress-first",
    backend: str | None = None,
) -> Tensor:
    """IBNorm over the last dimension: compress toward the mean, standardize, affine.

    ``d = x - mean(x)``, ``c = lambda g(d / lambda)``, ``z = (c - mean(c)) / sqrt(var(c) + eps)``,
    ``y = weight z + bias``, with the biased variance. The steps and their order are sourced (arXiv:2510.25262);
    g and the factor lambda outside it, which keeps var(c) far above eps, are reconstructed.
    ``standardize-first`` is the paper's order ablation: ``z = lambda g(standardize(x) / lambda)``.

    Args:
        x: (..., width), any floating dtype. Half precision is computed in float32 and returned in x's dtype.
        weight, bias: (width,) or None.
        norm_type: ``ibnorm-l``, ``-t``, ``-s``, ``-sqrt`` or a registered compression.
        norm_lambda: where compression sets in, in units of x; None takes the variant's default.
        eps: added to the variance.
        backend: None chooses by device, dtype and shape; ``reference``, ``eager``, ``compiled`` (a C++ kernel on CPU)
            or ``triton`` asks for one, as does the environment variable ``IBNORM_BACKEND``; ``eager`` stands in for
            one that cannot take x.

    Returns:
        A tensor of x's shape and dtype. For backward, x, weight and three scalars a row are kept.

    Raises:
        ValueError: unknown norm_type or norm_order, norm_lambda not above 0, or a weight that does not fit x.
    """
    compression = get_compression(norm_type)
    lam = compression.default_lambda if norm_lambda is None else check_lambda(norm_lambda)
    return apply_ib_norm(x, weight, bias, compression, lam, eps, check_order(norm_order), check_backend(backend))


def apply_ib_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    compression: Compression,
    lam: float,
    eps: float,
    order: str,
    backend: str | None = None,
) -> Tensor:
    """``ib_norm`` with its arguments already checked: what the modules call at every step."""
    if (backend or _BACKEND) == "reference":
        return _reference(x, weight, bias, compression, lam, eps, order)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return _IBNorm.apply(x, weight, bias, compression, lam, eps, order, backend)[0]
    return _DirectIBNorm.apply(x, weight, bias, compression, lam, eps, order, backend)


def ib_norm_reference(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm_type: str = "ibnorm-l",
    norm_lambda: float | None = None,
    eps: float = 1e-5,
    norm_order: str = "compress-first",
) -> Tensor:
    """What every other path is tested against: the definition, in x's own dtype, differentiated by autograd."""
    compression = get_compression(norm_type)
    lam = compression.default_lambda if norm_lambda is None else check_lambda(norm_lambda)
    return _reference(x, weight, bias, compression, lam, eps, check_order(norm_order))


def _reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float, order: str
) -> Tensor:
    if order == "compress-first":
        d = x - x.mean(-1, keepdim=True)
        z = _standardize(lam * _Compress.apply(d / lam, compression), eps)
    else:
        z = lam * _Compress.apply(_standardize(x, eps) / lam, compression)
    if weight is not None:
        z = z * weight
    return z if bias is None else z + bias


def _standardize(x: Tensor, eps: float) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d * d).mean(-1, keepdim=True) + eps)


class _Compress(torch.autograd.Function):
    """g with its true derivative: autograd's own of sign(u) ln(1 + |u|) is 0 at u = 0, where the slope is 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, compression: Compression) -> Tensor:
        return compression.g(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Compression], output: Tensor) -> None:
        u, ctx.compression = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, ds: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return ds * ctx.compression.dg(u, _Compress.apply(u, ctx.compression)), None


class _IBNorm(torch.autograd.Function):
    """Saves x, weight and three scalars a row (two for standardize-first); backward recomputes the rest."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        compression: Compression,
        lam: float,
        eps: float,
        order: str,
        backend: str | None,
    ) -> tuple[Tensor, ...]:
        _check_affine(x, weight, bias)
        kernels = _kernels(x, compression, order, backend, weight, bias)
        return kernels.forward(x, weight, bias, compression, lam, eps, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, *ctx.options = inputs
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (weight, bias))
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        statistics: tuple[Tensor, ...] = tuple(saved)
        compression, lam, eps, order, backend = ctx.options
        kernels = _kernels(x, compression, order, backend, weight, dy)
        # Gradients are recorded inside a backward only for create_graph=True. Saved statistics are constants, and a
        # second derivative needs them as functions of x. A traced backward is never differentiated.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            kernels = EAGER
            compression = replace(compression, g=partial(_Compress.apply, compression=compression))
            statistics = EAGER.forward(x, None, None, compression, lam, eps, order)[1:]
        wanted = ctx.needs_input_grad[:3]
        dx, *sums = kernels.backward(dy, x, weight, statistics, compression, lam, order, wanted)
        dweight, dbias = (s if s is None else s.to(t) for s, t in zip(sums, ctx.dtypes, strict=True))
        return dx, dweight, dbias, None, None, None, None, None


def _check_affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    # Kernels read weight and bias by address: what does not fit must end here.
    if x.dim() == 0:
        raise ValueError("x needs at least one dimension, the features to normalize over.")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and (t.shape != x.shape[-1:] or t.device != x.device):
            raise ValueError(
                f"{name} has shape {tuple(t.shape)} on {t.device}, but x has width {x.shape[-1]} and is on {x.device}."
            )


class _DirectIBNorm(torch.autograd.Function):
    """The same for plain tensors: transforms need setup_context, and binding its arguments costs torch 40 us a call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any) -> Tensor:
        y, *statistics = _IBNorm.forward(x, weight, bias, *options)
        ctx.options = options
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (weight, bias))
        ctx.save_for_backward(x, weight, *statistics)
        return y

    backward = staticmethod(_IBNorm.backward)


def _kernels(x: Tensor, compression: Compression, order: str, backend: str | None, *others: Tensor | None) -> Kernels:
    """What runs: the fastest that can take x, unless one is asked for; ``others`` are read beside it."""
    if torch.compiler.is_compiling():
        return EAGER  # inductor fuses the plain operations with their neighbours
    backend = backend or _BACKEND
    if not all(map(_is_plain, (x, *others))):
        return EAGER
    for t in (x, *others):
        _check_memory(t)
    if backend == "eager":
        return EAGER
    if backend in (None, "compiled") and supports(x, compression, order):
        return FUSED_CPU
    if backend == "triton" or (backend is None and x.is_cuda):
        from .fused_triton import FUSED_TRITON, why_not

        reason = why_not(x, compression)
        if reason is None:
            return FUSED_TRITON
        log_once(f"IBNorm's Triton kernel is not used, the slower torch path runs instead: {reason}")
    return EAGER


def _is_plain(t: Tensor | None) -> bool:
    """Whether a kernel may read t by its address: not a subclass, nor under a transform, a mode or a trace."""
    return t is None or (
        type(t) in (Tensor, torch.nn.Parameter)
        and t.layout is torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and not torch._C._functorch.is_legacy_batchedtensor(t)
        and not t._is_zerotensor()  # no memory at all: what autograd passes where a gradient is known to be zero
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.jit.is_tracing()
    )


def _check_memory(t: Tensor | None) -> None:
    """ValueError where t's storage is too small for it: at such an address a kernel, or torch, would crash."""
    if t is None or not t.numel():
        return
    count = t.numel()
    if not t.is_contiguous():
        count = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    if t.untyped_storage().nbytes() < (t.storage_offset() + count) * t.element_size():
        raise ValueError(
            f"a tensor of shape {tuple(t.shape)} that the norm reads has no memory behind it: its storage was freed, "
            "as sharded training does between uses; use the norm inside the module that gathers its parameters."
        )
