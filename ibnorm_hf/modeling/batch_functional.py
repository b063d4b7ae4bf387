# SPDX-License-Identifier: Apache-2.0
"""IBNorm over the batch area, N, H and W of each channel: the readable reference, and the path that saves only x."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .compression import Compression
from .functional import compress
from .private_torch import graph_task

AREA = (0, 2, 3)
Mean = Callable[[Tensor], Tensor]


class BatchStatistics(NamedTuple):
    """What inference needs of a training batch, each (C,) in float32 (float64 for float64 x), without gradient.

    The mean of x, and the mean and biased variance of its compressed deviation c.
    """

    mean_x: Tensor
    mean_c: Tensor
    var_c: Tensor


def column(values: Tensor) -> Tensor:
    """(C,) as (1, C, 1, 1)."""
    return values[None, :, None, None]


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def require_images(x: Tensor, channels: int) -> None:
    """ValueError unless x is (N, channels, H, W)."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"expected an input of shape (N, {channels}, H, W), got {tuple(x.shape)}.")


def require_several(count: int, x: Tensor) -> None:
    """ValueError where a channel has a single value, whose deviation from its own mean is nothing (as in torch)."""
    if count <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}.")


def batch_ib_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float
) -> tuple[Tensor, BatchStatistics]:
    """Compress toward each channel's batch mean, standardize, affine: (N, C, H, W) of x's dtype, and the statistics.

    The batch area is sourced (arXiv:2510.25262); g and the factor lambda outside it are reconstructed, as for tokens.
    Half precision is computed in float32. For backward, x, weight and three numbers a channel are kept.
    """
    if torch.jit.is_tracing():  # a saved trace can hold no autograd Function
        y, *statistics = _BatchIBNorm.forward(x, weight, bias, compression, lam, eps)
        return y, BatchStatistics(*statistics)
    y, *statistics = _BatchIBNorm.apply(x, weight, bias, compression, lam, eps)
    return y, BatchStatistics(*statistics)


def batch_ib_norm_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    compression: Compression,
    lam: float,
    eps: float,
    mean: Mean | None = None,
) -> tuple[Tensor, BatchStatistics]:
    """The definition of ``batch_ib_norm`` in x's own dtype, differentiated by autograd.

    ``mean`` averages (N, C, H, W) over the area to (C,); over several processes it makes the synchronized variant.
    """
    mean = mean or _mean
    mean_x = mean(x)
    c = lam * compress((x - column(mean_x)) / lam, compression)
    mean_c = mean(c)
    d = c - column(mean_c)
    var_c = mean(d * d)
    y = d / torch.sqrt(column(var_c) + eps)
    if weight is not None:
        y = y * column(weight)
    if bias is not None:
        y = y + column(bias)
    return y, BatchStatistics(mean_x.detach(), mean_c.detach(), var_c.detach())


def apply_running(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: BatchStatistics,
    compression: Compression,
    lam: float,
    eps: float,
) -> Tensor:
    """Inference: the same steps with constants in place of the batch's statistics."""
    x32 = at_least_float32(x)
    mean_x, mean_c, var_c = (t.to(x32.dtype) for t in running)
    c = lam * compress((x32 - column(mean_x)) / lam, compression)
    return F.batch_norm(c, mean_c, var_c, _as(weight, c), _as(bias, c), False, 0.0, eps).to(x.dtype)


def recomputing() -> bool:
    """Whether this forward runs inside a backward, as gradient checkpointing repeats it: nothing is counted twice."""
    if torch.compiler.is_compiling():
        return False  # a traced graph repeats values, never its updates of buffers
    return bool(graph_task() != -1)


def _mean(x: Tensor) -> Tensor:
    return x.mean(AREA)


def _as(parameter: Tensor | None, like: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(like.dtype)


class _BatchIBNorm(torch.autograd.Function):
    """Saves x, weight and (C,) statistics; backward compresses again, and leaves standardization to torch's kernel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x32 = at_least_float32(x)
        mean_x = x32.mean(AREA)
        c = lam * compression.g((x32 - column(mean_x)) / lam)
        var_c, mean_c = torch.var_mean(c, AREA, correction=0)
        y = F.batch_norm(c, mean_c, var_c, _as(weight, c), _as(bias, c), False, 0.0, eps)
        return y.to(x.dtype), mean_x, mean_c, var_c

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, *ctx.options = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        # Gradients are recorded inside a backward only for create_graph=True. Saved statistics are constants, and a
        # second derivative needs them as functions of x.
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        dx, dweight, dbias = _differentiable(ctx, dy) if again else _recomputed(ctx, dy)
        return dx, dweight, dbias, None, None, None


def _recomputed(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mean_x, mean_c, var_c = ctx.saved_tensors
    compression, lam, eps = ctx.options
    x32 = at_least_float32(x)
    u = (x32 - column(mean_x)) / lam
    s = compression.g(u)
    dc, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        dy.to(x32.dtype),
        lam * s,
        _as(weight, x32),
        None,
        None,
        mean_c,
        torch.rsqrt(var_c + eps),
        True,
        eps,
        list(ctx.needs_input_grad[:3]),
    )
    dx = None
    if ctx.needs_input_grad[0]:
        dd = compression.dg(u, s) * dc
        dx = (dd - column(dd.mean(AREA))).to(x.dtype)
    return (
        dx,
        dweight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
        dbias.to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None,
    )


def _differentiable(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, *_ = ctx.saved_tensors
    inputs = [at_least_float32(x)] if weight is None else [at_least_float32(x), weight]

    def normalize(x: Tensor, weight: Tensor | None = None) -> Tensor:
        return batch_ib_norm_reference(x, weight, None, *ctx.options)[0]

    # By vjp, which unlike autograd.grad works inside of other transforms too.
    dx, *rest = torch.func.vjp(normalize, *inputs)[1](dy.to(inputs[0].dtype))
    dbias = dy.sum(AREA).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
    return (
        dx.to(x.dtype) if ctx.needs_input_grad[0] else None,
        rest[0] if ctx.needs_input_grad[1] else None,
        dbias,
    )
