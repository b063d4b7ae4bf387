# SPDX-License-Identifier: Apache-2.0
"""``ib_norm``: the readable reference, and the default path that saves only x and three scalars a row."""

from typing import Any

import torch
from torch import Tensor

from .compression import Compression, canonical_name, get_compression, unknown_name

NORM_ORDERS = ("compress-first", "standardize-first")


def check_lambda(norm_lambda: float) -> float:
    """Return lambda as a float; ValueError unless it is a finite number above 0 (the paper uses lambda >= 1)."""
    valid = isinstance(norm_lambda, int | float) and not isinstance(norm_lambda, bool)
    if not valid or not 0 < norm_lambda < float("inf"):
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

    Returns:
        A tensor of x's shape and dtype. For backward, x, weight and three scalars a row are kept.

    Raises:
        ValueError: unknown norm_type or norm_order, or norm_lambda not above 0.
    """
    compression = get_compression(norm_type)
    lam = compression.default_lambda if norm_lambda is None else check_lambda(norm_lambda)
    return apply_ib_norm(x, weight, bias, compression, lam, eps, check_order(norm_order))


def apply_ib_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float, order: str
) -> Tensor:
    """``ib_norm`` with its arguments already checked: what the modules call at every step."""
    function = _CompressFirst if order == "compress-first" else _StandardizeFirst
    return function.apply(x, weight, bias, compression, lam, eps)[0]


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
    if check_order(norm_order) == "compress-first":
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


class _Recompute(torch.autograd.Function):
    """Saves x, weight and one statistic tensor (..., 3) or (..., 2); everything else is recomputed in backward."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.compression, ctx.lam, ctx.eps = inputs
        ctx.weight_dtype = None if weight is None else weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])


class _CompressFirst(_Recompute):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float
    ) -> tuple[Tensor, ...]:
        x32 = _at_least_float32(x)
        mean_x = x32.mean(-1, keepdim=True)
        c = lam * compression.g((x32 - mean_x) / lam)
        mean_c, rstd = _moments(c, eps)
        return _affine((c - mean_c) * rstd, weight, bias).to(x.dtype), mean_x, mean_c, rstd

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean_x, mean_c, rstd = ctx.saved_tensors
        x32, dy32 = _at_least_float32(x), _at_least_float32(dy)
        differentiable = _create_graph()
        if differentiable:  # saved statistics are constants: a second derivative needs them as functions of x
            mean_x = x32.mean(-1, keepdim=True)
        u = (x32 - mean_x) / ctx.lam
        s = _Compress.apply(u, ctx.compression) if differentiable else ctx.compression.g(u)
        c = ctx.lam * s
        if differentiable:
            mean_c, rstd = _moments(c, ctx.eps)
        z = (c - mean_c) * rstd
        dx = None
        if ctx.needs_input_grad[0]:
            dc = _standardize_backward(dy32 if weight is None else dy32 * weight, z, rstd)
            dd = ctx.compression.dg(u, s) * dc
            dx = (dd - dd.mean(-1, keepdim=True)).to(x.dtype)
        return dx, *_affine_backward(ctx, dy32, z, weight), None, None, None


class _StandardizeFirst(_Recompute):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float
    ) -> tuple[Tensor, ...]:
        x32 = _at_least_float32(x)
        mean, rstd = _moments(x32, eps)
        z = lam * compression.g((x32 - mean) * rstd / lam)
        return _affine(z, weight, bias).to(x.dtype), mean, rstd

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        x32, dy32 = _at_least_float32(x), _at_least_float32(dy)
        differentiable = _create_graph()
        if differentiable:  # as above
            mean, rstd = _moments(x32, ctx.eps)
        h = (x32 - mean) * rstd
        u = h / ctx.lam
        s = _Compress.apply(u, ctx.compression) if differentiable else ctx.compression.g(u)
        dx = None
        if ctx.needs_input_grad[0]:
            dz = dy32 if weight is None else dy32 * weight
            dx = _standardize_backward(ctx.compression.dg(u, s) * dz, h, rstd).to(x.dtype)
        return dx, *_affine_backward(ctx, dy32, ctx.lam * s, weight), None, None, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _create_graph() -> bool:
    # Gradients are recorded inside a backward only for create_graph=True; a traced backward is never differentiated.
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _moments(c: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(c, -1, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + eps)


def _affine(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        z = z * weight
    return z if bias is None else z + bias


def _standardize_backward(dz: Tensor, z: Tensor, rstd: Tensor) -> Tensor:
    return rstd * (dz - dz.mean(-1, keepdim=True) - z * (dz * z).mean(-1, keepdim=True))


def _affine_backward(ctx: Any, dy: Tensor, z: Tensor, weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    dweight = dbias = None
    width = dy.shape[-1]
    if ctx.needs_input_grad[1]:
        dweight = (dy * z).reshape(-1, width).sum(0).to(ctx.weight_dtype)
    if ctx.needs_input_grad[2]:
        dbias = dy.reshape(-1, width).sum(0).to(ctx.bias_dtype)
    return dweight, dbias
