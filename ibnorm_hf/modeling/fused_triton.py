# SPDX-License-Identifier: Apache-2.0
"""IBNorm on CUDA by Triton: one read of x forward, one of x and dy backward, with partial sums for weight and bias.

A program takes one row, or several narrow ones; backward, a fixed number of programs a width walk over all rows, so
that sums are added in the same order on every machine and run.

Tested under Triton's CPU interpreter (``TRITON_INTERPRET=1``); its speed on a GPU is not measured. Imported only when a
CUDA tensor, or ``backend="triton"``, asks for it.
"""

import contextlib
import functools
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
_CODES = {"ibnorm-l": 0, "ibnorm-t": 1, "ibnorm-s": 2, "ibnorm-sqrt": 3}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Programs of the backward up to a width: what about 128 multiprocessors hold at once, and each has rows to overlap.
_PROGRAMS = {256: 2048, 1024: 1024, 2048: 512, 4096: 256, MAX_WIDTH: 128}


def why_not(x: Tensor, compression: Compression) -> str | None:
    """The reason why these kernels cannot take x, or None when they can."""
    if triton is None:
        return "triton is not installed"
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        return "the tensor is not on a CUDA device"
    if x.dtype not in _DTYPES or not 0 < x.shape[-1] <= MAX_WIDTH or compression.name not in _CODES:
        return f"{compression.name} of width {x.shape[-1]} in {x.dtype} has no kernel"
    return _why_no_launch(x.device)


def has_kernel(name: str) -> bool:
    """Whether there is a kernel for a compression, and Triton and a GPU that it builds for."""
    old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (7, 0)
    return triton is not None and name in _CODES and not old


@functools.cache
def _why_no_launch(device: torch.device) -> str | None:
    """Build and launch the smallest kernel, once a device: no compiler, or a device too old, shows here."""
    try:
        one = torch.zeros(1, dtype=torch.float32, device=device)
        with _on_device(one):
            _probe_kernel[(1,)](one)
    except Exception as error:  # whatever a compiler, a driver or Triton raises; the torch path runs in its place
        return f"Triton cannot build or launch a kernel for {device} ({type(error).__name__}: {error})"
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
        options = launch_options(width, rows.stride(0))
        with _on_device(x):
            _forward_kernel[(triton.cdiv(count, options["ROWS"]),)](
                rows,
                _or(weight, rows),
                _or(bias, rows),
                y,
                statistics,
                rows.stride(0),
                count,
                width,
                lam,
                1.0 / lam,
                eps,
                CODE=_CODES[compression.name],
                COMPRESS_FIRST=compress_first,
                HAS_WEIGHT=weight is not None,
                HAS_BIAS=bias is not None,
                **options,
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
    options = launch_options(width, rows.stride(0), dy_rows.stride(0))
    programs = min(triton.cdiv(count, options["ROWS"]), programs_for(width))
    partial = torch.empty((sum(wanted[1:]), programs, width), dtype=torch.float32, device=x.device)
    if count:
        with _on_device(x):
            _backward_kernel[(programs,)](
                dy_rows,
                rows,
                _or(weight, rows),
                statistics.contiguous(),
                dx,
                partial if any(wanted[1:]) else dx,
                rows.stride(0),
                dy_rows.stride(0),
                count,
                width,
                lam,
                1.0 / lam,
                CODE=_CODES[compression.name],
                COMPRESS_FIRST=order == "compress-first",
                HAS_WEIGHT=weight is not None,
                WANT_DWEIGHT=wanted[1],
                WANT_DBIAS=wanted[2],
                PREFETCH=width <= 4096,
                **options,
            )
    sums = list(partial.sum(1))
    dweight = sums.pop(0) if wanted[1] else None
    return dx, dweight, sums.pop(0) if wanted[2] else None


FUSED_TRITON = Kernels(forward, backward)


def _rows(x: Tensor) -> Tensor:
    rows = x.detach().resolve_neg().reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _or(t: Tensor | None, placeholder: Tensor) -> Tensor:
    return placeholder if t is None else t.detach().resolve_neg().contiguous()


def _on_device(x: Tensor) -> Any:
    # Triton launches on the current device, which need not be the tensor's.
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def programs_for(width: int) -> int:
    """Programs of the backward, at most: constant a width."""
    return next(programs for limit, programs in _PROGRAMS.items() if width <= limit)


def launch_options(width: int, *strides: int) -> dict[str, Any]:
    """How a width is cut: rows a program, warps, and the alignment that all rows share, by which loads are wide.

    FP fusion is asked for by name, because newer releases of Triton leave it off.
    """
    block = triton.next_power_of_2(width)
    align = next(n for n in (16, 8, 4, 2, 1) if all(size % n == 0 for size in (width, *strides)))
    warps = 8 if 2048 < width <= 4096 else 32 if width > 8192 else min(16, max(1, block // 256))
    return {
        "BLOCK": block,
        "ROWS": max(1, min(16, 512 // block)),
        "ALIGN": align,
        "num_warps": warps,
        "enable_fp_fusion": True,
    }


if triton is not None:

    @triton.jit
    def _probe_kernel(ptr):  # type: ignore[no-untyped-def]
        tl.store(ptr, tl.load(ptr) + 1.0)

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
    def _load(ptr, row, stride, columns, mask, ALIGN: tl.constexpr):  # type: ignore[no-untyped-def]
        offsets = tl.multiple_of(row * stride, ALIGN)[:, None] + columns[None, :]
        return tl.load(ptr + offsets, mask=mask, other=0.0)

    @triton.jit
    def _forward_kernel(  # type: ignore[no-untyped-def]
        x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr, x_stride, rows, width, lam, inverse, eps,
        CODE: tl.constexpr, COMPRESS_FIRST: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
        BLOCK: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        columns = tl.arange(0, BLOCK)
        # Compared in groups of ALIGN, so that one wide access has one mask.
        within = columns // ALIGN < width // ALIGN
        inside = (row < rows)[:, None] & within[None, :]
        x = _load(x_ptr, row, x_stride, columns, inside, ALIGN).to(tl.float32)
        mean_x = tl.sum(x, 1) / width
        d = tl.where(inside, x - mean_x[:, None], 0.0)
        tl.store(statistics_ptr + row, mean_x, mask=row < rows)
        if COMPRESS_FIRST:
            s, _ = _compress(d * inverse, CODE)
            c = lam * s
            mean_c = tl.sum(c, 1) / width
            centred = tl.where(inside, c - mean_c[:, None], 0.0)
            rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
            out = centred * rstd[:, None]
            tl.store(statistics_ptr + rows + row, mean_c, mask=row < rows)
            tl.store(statistics_ptr + 2 * rows + row, rstd, mask=row < rows)
        else:
            rstd = 1.0 / tl.sqrt(tl.sum(d * d, 1) / width + eps)
            s, _ = _compress(d * rstd[:, None] * inverse, CODE)
            out = lam * s
            tl.store(statistics_ptr + rows + row, rstd, mask=row < rows)
        if HAS_WEIGHT:
            out = out * tl.load(weight_ptr + columns, mask=within, other=0.0).to(tl.float32)[None, :]
        if HAS_BIAS:
            out = out + tl.load(bias_ptr + columns, mask=within, other=0.0).to(tl.float32)[None, :]
        offsets = tl.multiple_of(row * width, ALIGN)[:, None] + columns[None, :]
        tl.store(y_ptr + offsets, out.to(y_ptr.dtype.element_ty), mask=inside)

    @triton.jit
    def _backward_kernel(  # type: ignore[no-untyped-def]
        dy_ptr, x_ptr, weight_ptr, statistics_ptr, dx_ptr, partial_ptr, x_stride, dy_stride, rows, width, lam, inverse,
        CODE: tl.constexpr, COMPRESS_FIRST: tl.constexpr, HAS_WEIGHT: tl.constexpr, WANT_DWEIGHT: tl.constexpr,
        WANT_DBIAS: tl.constexpr, PREFETCH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr,
    ):  # fmt: skip
        columns = tl.arange(0, BLOCK)
        within = columns // ALIGN < width // ALIGN
        dweight = tl.zeros((BLOCK,), dtype=tl.float32)
        dbias = tl.zeros((BLOCK,), dtype=tl.float32)
        weight = tl.zeros((BLOCK,), dtype=tl.float32)
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + columns, mask=within, other=0.0).to(tl.float32)
        step = tl.num_programs(0).to(tl.int64) * ROWS
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & within[None, :]
        if PREFETCH:
            raw_x = _load(x_ptr, row, x_stride, columns, inside, ALIGN)
            raw_dy = _load(dy_ptr, row, dy_stride, columns, inside, ALIGN)
        for _ in range(tl.program_id(0).to(tl.int64) * ROWS, rows, step):
            if not PREFETCH:
                raw_x = _load(x_ptr, row, x_stride, columns, inside, ALIGN)
                raw_dy = _load(dy_ptr, row, dy_stride, columns, inside, ALIGN)
            x, dy = raw_x.to(tl.float32), raw_dy.to(tl.float32)
            following = row + step
            following_inside = (following < rows)[:, None] & within[None, :]
            if PREFETCH:  # under way while this row is reduced
                raw_x = _load(x_ptr, following, x_stride, columns, following_inside, ALIGN)
                raw_dy = _load(dy_ptr, following, dy_stride, columns, following_inside, ALIGN)
            dz = dy
            if HAS_WEIGHT:
                dz = dy * weight[None, :]
            d = tl.where(inside, x - tl.load(statistics_ptr + row, mask=row < rows, other=0.0)[:, None], 0.0)
            second = tl.load(statistics_ptr + rows + row, mask=row < rows, other=0.0)[:, None]
            if COMPRESS_FIRST:
                rstd = tl.load(statistics_ptr + 2 * rows + row, mask=row < rows, other=0.0)[:, None]
                s, slope = _compress(d * inverse, CODE)
                out = tl.where(inside, (lam * s - second) * rstd, 0.0)
                dc = rstd * (dz - (tl.sum(dz, 1) / width)[:, None] - out * (tl.sum(dz * out, 1) / width)[:, None])
                dd = tl.where(inside, slope * dc, 0.0)
                dx = dd - (tl.sum(dd, 1) / width)[:, None]
            else:
                h = d * second
                s, slope = _compress(h * inverse, CODE)
                out = lam * s
                dh = slope * dz
                dx = second * (dh - (tl.sum(dh, 1) / width)[:, None] - h * (tl.sum(dh * h, 1) / width)[:, None])
            offsets = tl.multiple_of(row * width, ALIGN)[:, None] + columns[None, :]
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
            if WANT_DWEIGHT:
                dweight += tl.sum(dy * out, 0)
            if WANT_DBIAS:
                dbias += tl.sum(dy, 0)
            row = following
            inside = following_inside
        part = partial_ptr + tl.program_id(0).to(tl.int64) * width + columns
        if WANT_DWEIGHT:
            tl.store(part, dweight, mask=within)
            part += tl.num_programs(0).to(tl.int64) * width
        if WANT_DBIAS:
            tl.store(part, dbias, mask=within)
