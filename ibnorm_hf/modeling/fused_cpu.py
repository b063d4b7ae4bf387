# SPDX-License-Identifier: Apache-2.0
"""IBNorm on the CPU in one pass a direction, by a small C++ library that the machine's own compiler builds.

It is built once per machine, compression and order, in one to two seconds at the first call, and kept in a folder of
the user's own (see ``kernel_cache``). Where no compiler is found, one log line says so and the plain
torch path runs instead. Nothing is built at install or import.
"""

import ctypes
import functools
import subprocess

import torch
from torch import Tensor
from transformers.utils import logging

from .compression import Compression
from .eager import Kernels
from .fused_cpu_source import SOURCE
from .kernel_cache import load_library

logger = logging.get_logger(__name__)

MAX_WIDTH = 16384
_STRUCTS = {"ibnorm-l": "Log", "ibnorm-t": "Tanh", "ibnorm-s": "Softsign", "ibnorm-sqrt": "Sqrt", "ibnorm-clip": "Clip"}
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
_SERIAL_BELOW = 32768  # elements; torch's own threshold for leaving work to one thread


class _Shape(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("dy_stride", ctypes.c_int64),
        ("lam", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("threads", ctypes.c_int32),
    ]


def supports(x: Tensor, compression: Compression, order: str) -> bool:
    """Whether this path can take x: a CPU tensor of float32 or half precision, and a library that was built."""
    return (
        x.device.type == "cpu"
        and x.dtype in _TYPES
        and 0 < x.shape[-1] <= MAX_WIDTH
        and hasattr(_library(compression.name, order), f"forward_{_TYPES[x.dtype]}")
    )


def has_library(name: str, order: str) -> bool:
    """Whether the library of a compression and order is, or now could be, built."""
    return _library(name, order) is not None


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, compression: Compression, lam: float, eps: float, order: str
) -> tuple[Tensor, Tensor]:
    """As ``eager.forward``."""
    rows = _rows(x)
    # Every allocation states dtype and device: those of the process (set_default_dtype, torch.device) are not x's.
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    count = 3 if order == "compress-first" else 2
    statistics = torch.empty((count, *x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if bias is not None and weight is None:
        weight = torch.ones_like(bias)
    weight, bias = _float32(weight), _float32(bias)
    call = getattr(_library(compression.name, order), f"forward_{_TYPES[x.dtype]}")
    pointers = (rows, weight, bias, y, statistics)
    call(*map(_pointer, pointers), ctypes.byref(_shape(rows, 0, lam, eps)))
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
    """As ``eager.backward``. Sums over rows are taken a thread at a time in fixed order: repeats are bit-identical."""
    rows, dy_rows = _rows(x), _rows(dy)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shape = _shape(rows, dy_rows.stride(0), lam, 0.0)
    weight = _float32(weight)
    partial = torch.zeros(2, shape.threads, x.shape[-1], dtype=torch.float32, device=x.device)
    sums = [part if want else None for part, want in zip(partial, wanted[1:], strict=True)]
    call = getattr(_library(compression.name, order), f"backward_{_TYPES[x.dtype]}")
    pointers = (dy_rows, rows, weight, statistics.contiguous(), dx, *sums)
    call(*map(_pointer, pointers), ctypes.byref(shape))
    dweight, dbias = (None if s is None else s.sum(0) for s in sums)
    return dx, dweight, dbias


FUSED_CPU = Kernels(forward, backward)


def _rows(x: Tensor) -> Tensor:
    """(rows, width) with contiguous rows at a fixed stride: a view where the layout allows it, else a copy."""
    rows = x.detach().resolve_neg().reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _float32(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().resolve_neg().float().contiguous()


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _shape(rows: Tensor, dy_stride: int, lam: float, eps: float) -> _Shape:
    threads = 1 if rows.numel() < _SERIAL_BELOW else torch.get_num_threads()
    return _Shape(rows.shape[0], rows.shape[1], rows.stride(0), dy_stride, lam, eps, threads)


@functools.cache
def _library(name: str, order: str) -> ctypes.CDLL | None:
    """The built library for a built-in compression, or None; the reason is logged once."""
    if name not in _STRUCTS:
        return None
    defines = (f"-DCOMPRESSION={_STRUCTS[name]}", f"-DCOMPRESS_FIRST={str(order == 'compress-first').lower()}")
    try:
        library, not_kept = load_library(f"{name}-{order}", SOURCE, (*_FLAGS, *defines))
    except (OSError, subprocess.SubprocessError) as error:
        log_once(f"IBNorm's CPU kernel could not be built, the slower torch path runs instead: {error}")
        return None
    if not_kept:
        log_once(f"IBNorm's CPU kernel is built anew in every process: {not_kept}")
    for dtype in _TYPES.values():
        for direction, count in (("forward", 5), ("backward", 7)):
            function = getattr(library, f"{direction}_{dtype}", None)
            if function is not None:
                function.argtypes = [ctypes.c_void_p] * (count + 1)
                function.restype = None
    return library


@functools.cache
def log_once(line: str) -> None:
    """Log a warning, once a process."""
    logger.warning(line)
