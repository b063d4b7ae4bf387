# SPDX-License-Identifier: Apache-2.0
"""``ib_norm``: the readable reference, and the default path that saves only x and three scalars a row."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .compression import Compression, canonical_name, get_compression, unknown_name
from .dispatch import BACKEND, check_backend, is_plain, plain_kernels, recorded, why_no_operator
from .eager import EAGER, Kernels
from .fused_cpu import log_once
from .ops import OPS
from .private_torch import transforms_are_active

NORM_ORDERS = ("compress-first", "standardize-first")


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
    if (backend or BACKEND) == "reference":
        return _reference(x, weight, bias, compression, lam, eps, order)
    if torch.jit.is_tracing():  # a saved trace can hold no autograd Function
        _check_affine(x, weight, bias)
        return EAGER.forward(x, weight, bias, compression, lam, eps, order)[0]
    if torch.compiler.is_compiling() or transforms_are_active():
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
        z = _standardize(lam * compress(d / lam, compression), eps)
    else:
        z = lam * compress(_standardize(x, eps) / lam, compression)
    if weight is not None:
        z = z * weight
    return z if bias is None else z + bias


def _standardize(x: Tensor, eps: float) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d * d).mean(-1, keepdim=True) + eps)


def compress(u: Tensor, compression: Compression) -> Tensor:
    """g(u), elementwise, with its true derivative."""
    if torch.jit.is_tracing():  # a saved trace can hold no autograd Function
        return compression.g(u)
    out: Tensor = _Compress.apply(u, compression)
    return out


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
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        compression, lam, eps, order, backend = ctx.options
        kernels = _kernels(x, compression, order, backend, weight, dy)
        # Gradients are recorded inside a backward only for create_graph=True. Saved statistics are constants, and a
        # second derivative needs them as functions of x. A traced backward is never differentiated.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            kernels = EAGER
            compression = replace(compression, g=partial(compress, compression=compression))
            statistics = EAGER.forward(x, None, None, compression, lam, eps, order)[1]
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
        y, statistics = _IBNorm.forward(x, weight, bias, *options)
        ctx.options = options
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (weight, bias))
        ctx.save_for_backward(x, weight, statistics)
        return y

    backward = staticmethod(_IBNorm.backward)


def _kernels(x: Tensor, compression: Compression, order: str, backend: str | None, *others: Tensor | None) -> Kernels:
    """What runs: a kernel by address, the operator that holds it where operators are recorded, or plain torch."""
    if torch.compiler.is_compiling():
        return OPS if recorded(x, compression, order, backend) else EAGER
    if is_plain(x, *others):
        return plain_kernels(x, compression, order, backend, *others)
    if not recorded(x, compression, order, backend):
        return EAGER
    reason = why_no_operator(x, *others)
    if reason is None:
        return OPS
    log_once(f"IBNorm runs in plain torch here, several times slower than its kernel: {reason}.")
    return EAGER
