# SPDX-License-Identifier: Apache-2.0
"""IBNorm on CUDA by Triton: a row a program forward; backward dx in one pass, with partial sums for weight and bias.

Tested under Triton's CPU interpreter (``TRITON_INTERPRET=1``); its speed on a GPU is not measured. Imported only when a
CUDA tensor, or ``backend="triton"``, asks for it.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor

from .compression import Compression
from .eager import Kernels

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MAX_WIDTH = 16384
_PROGRAMS = 256  # of the backward; fixed, so that its sums are added in the same order on every machine and run
_CODES = {"ibnorm-l": 0, "ibnorm-t": 1, "ibnorm-s": 2, "ibnorm-sqrt": 3}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(x: Tensor, compression: Compression) -> str | None:
    """The reason why these kernels cannot take x, or None when they can."""
    if triton is None:
        return "triton is not installed"
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        return "the tensor is not on a CUDA device"
    if x.dtype not in _DTYPES or not 0 < x.shape[-1] <= MAX_WIDTH or compression.name not in _CODES:
        return f"{compression.name} of width {x.shape[-1]} in {x.dtype} has no kernel"
    return None


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float, order: str
) -> tuple[Tensor, Tensor]:
    """As ``eager.forward``."""
    rows = _rows(x)
    count, width = rows.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    compress_first = order == "compress-first"
    statistics = torch.empty((3 if compress_first else 2, *x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if count:
        with _on_device(x):
            _forward_kernel[(count,)](
                rows,
                _or(weight, rows),
                _or(bias, rows),
                y,
                *statistics[:2],
                statistics[-1],
                rows.stride(0),
                width,
                lam,
                eps,
                CODE=_CODES[compression.name],
                COMPRESS_FIRST=compress_first,
                HAS_WEIGHT=weight is not None,
                HAS_BIAS=bias is not None,
                **_launch(width),
            )
    return y, statistics


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
    """As ``eager.backward``; the partial sums of weight and bias gradients are added in fixed order."""
    rows, dy_rows = _rows(x), _rows(dy)
    count, width = rows.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs = max(1, min(count, _PROGRAMS))
    partial = torch.zeros(2, programs, width, dtype=torch.float32, device=x.device)
    if count:
        with _on_device(x):
            _backward_kernel[(programs,)](
                dy_rows,
                rows,
                _or(weight, rows),
                *statistics[:2],
                statistics[-1],
                dx,
                partial[0],
                partial[1],
                rows.stride(0),
                dy_rows.stride(0),
                count,
                width,
                lam,
                CODE=_CODES[compression.name],
                COMPRESS_FIRST=order == "compress-first",
                HAS_WEIGHT=weight is not None,
                PROGRAMS=programs,
                **_launch(width),
            )
    dweight, dbias = partial.sum(1)
    return dx, dweight if wanted[1] else None, dbias if wanted[2] else None


FUSED_TRITON = Kernels(forward, backward)


def _rows(x: Tensor) -> Tensor:
    rows = x.detach().resolve_neg().reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _or(t: Tensor | None, placeholder: Tensor) -> Tensor:
    return placeholder if t is None else t.detach().resolve_neg().contiguous()


def _on_device(x: Tensor) -> Any:
    # Triton launches on the current device, which need not be the tensor's.
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _launch(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


if triton is not None:

    @triton.jit
    def _log1p(a):  # type: ignore[no-untyped-def]
        # The same reduction and polynomial as the CPU kernel: exact for small a, where 1 + a would round it away.
        y = 1.0 + a
        bits = y.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        reduced = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
        f = tl.where(exponent == 0, a, reduced)
        p = -0.07634492963552475
        p = p * f + 0.12761574983596802
        p = p * f - 0.13160182535648346
        p = p * f + 0.14201758801937103
        p = p * f - 0.16623356938362122
        p = p * f + 0.20001226663589478
        p = p * f - 0.2500081956386566
        p = p * f + 0.3333333134651184
        log = f - 0.5 * f * f + f * f * f * p + exponent.to(tl.float32) * 0.6931471805599453
        return tl.where(a <= 3.4e38, log, a)

    @triton.jit
    def _tanh(a):  # type: ignore[no-untyped-def]
        a = tl.where(a > 10.0, 10.0, a)
        q = a * a
        p = -0.005717044696211815
        p = p * q + 0.020650586113333702
        p = p * q - 0.05374349653720856
        p = p * q + 0.13331490755081177
        p = p * q - 0.3333328366279602
        return tl.where(a < 0.625, a + a * q * p, 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0))

    @triton.jit
    def _compress(u, CODE: tl.constexpr):  # type: ignore[no-untyped-def]
        a = tl.abs(u)
        if CODE == 0:
            s = _log1p(a)
            slope = 1.0 / (1.0 + a)
        elif CODE == 1:
            s = _tanh(a)
            slope = 1.0 - s * s
        elif CODE == 2:
            q = 1.0 / (1.0 + a)
            s = a * q
            slope = q * q
        else:
            root = tl.sqrt(1.0 + a)
            s = 2.0 * a / (1.0 + root)
            slope = 1.0 / root
        return tl.where(u < 0, -s, s), slope

    @triton.jit
    def _forward_kernel(  # type: ignore[no-untyped-def]
        x_ptr, weight_ptr, bias_ptr, y_ptr, first_ptr, second_ptr, last_ptr, x_stride, width, lam, eps,
        CODE: tl.constexpr, COMPRESS_FIRST: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < width
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
        mean_x = tl.sum(x, 0) / width
        d = tl.where(inside, x - mean_x, 0.0)
        tl.store(first_ptr + row, mean_x)
        if COMPRESS_FIRST:
            s, _ = _compress(d / lam, CODE)
            c = lam * s
            mean_c = tl.sum(c, 0) / width
            centred = tl.where(inside, c - mean_c, 0.0)
            rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
            out = centred * rstd
            tl.store(second_ptr + row, mean_c)
        else:
            rstd = 1.0 / tl.sqrt(tl.sum(d * d, 0) / width + eps)
            s, _ = _compress(d * rstd / lam, CODE)
            out = lam * s
        tl.store(last_ptr + row, rstd)
        if HAS_WEIGHT:
            out = out * tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            out = out + tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * width + columns, out.to(y_ptr.dtype.element_ty), mask=inside)

    @triton.jit
    def _backward_kernel(  # type: ignore[no-untyped-def]
        dy_ptr, x_ptr, weight_ptr, first_ptr, second_ptr, last_ptr, dx_ptr, dweight_ptr, dbias_ptr,
        x_stride, dy_stride, rows, width, lam,
        CODE: tl.constexpr, COMPRESS_FIRST: tl.constexpr, HAS_WEIGHT: tl.constexpr, PROGRAMS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        columns = tl.arange(0, BLOCK)
        inside = columns < width
        dweight = tl.zeros((BLOCK,), dtype=tl.float32)
        dbias = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(tl.program_id(0), rows, PROGRAMS):
            row = tl.cast(start, tl.int64)
            x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
            dy = tl.load(dy_ptr + row * dy_stride + columns, mask=inside, other=0.0).to(tl.float32)
            dz = dy
            if HAS_WEIGHT:
                dz = dy * tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            d = tl.where(inside, x - tl.load(first_ptr + row), 0.0)
            rstd = tl.load(last_ptr + row)
            if COMPRESS_FIRST:
                s, slope = _compress(d / lam, CODE)
                out = tl.where(inside, (lam * s - tl.load(second_ptr + row)) * rstd, 0.0)
                dc = rstd * (dz - tl.sum(dz, 0) / width - out * (tl.sum(dz * out, 0) / width))
                dd = tl.where(inside, slope * dc, 0.0)
                dx = dd - tl.sum(dd, 0) / width
            else:
                h = d * rstd
                s, slope = _compress(h / lam, CODE)
                out = lam * s
                dh = slope * dz
                dx = rstd * (dh - tl.sum(dh, 0) / width - h * (tl.sum(dh * h, 0) / width))
            tl.store(dx_ptr + row * width + columns, dx.to(dx_ptr.dtype.element_ty), mask=inside)
            dweight += dy * out
            dbias += dy
        part = tl.program_id(0).to(tl.int64) * width + columns
        tl.store(dweight_ptr + part, dweight, mask=inside)
        tl.store(dbias_ptr + part, dbias, mask=inside)
