# SPDX-License-Identifier: Apache-2.0
"""Which path computes a norm: by device, dtype and shape, by what was asked for, and by what watches or transforms."""

import os

import torch
from torch import Tensor

from .compression import Compression, canonical_name, unknown_name
from .eager import EAGER, Kernels
from .fused_cpu import FUSED_CPU, has_library, log_once, supports
from .private_torch import (
    dispatch_modes,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    is_zerotensor,
    recording_types,
)

BACKENDS = ("reference", "eager", "compiled", "triton")


def check_backend(backend: str | None) -> str | None:
    """Return the canonical name of a backend, None for None; ValueError for an unknown one."""
    if backend is None:
        return None
    name = canonical_name(backend)
    if name not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    return name


BACKEND = check_backend(os.environ.get("IBNORM_BACKEND") or None)


def plain_kernels(
    x: Tensor, compression: Compression, order: str, backend: str | None, *others: Tensor | None
) -> Kernels:
    """The fastest that can take x, unless one is asked for; ``others`` are read beside it. All have an address."""
    for t in (x, *others):
        _check_memory(t)
    backend = backend or BACKEND
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


def recorded(x: Tensor, compression: Compression, order: str, backend: str | None) -> bool:
    """Whether what records operators (a compiler, a mode, fake tensors) shall see one operator with a kernel in it."""
    if (backend or BACKEND) == "eager" or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if x.device.type == "meta":
        return _has_kernel("cpu", compression.name, order)
    return _has_kernel(x.device.type, compression.name, order)


@torch.compiler.assume_constant_result
def _has_kernel(device: str, name: str, order: str) -> bool:
    if device == "cuda":
        from .fused_triton import has_kernel

        return has_kernel(name)
    return device == "cpu" and has_library(name, order)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a kernel may read the tensors by address, and nothing records what it does."""
    return dispatch_modes() == 0 and all(map(_has_address, tensors))


def _has_address(t: Tensor | None) -> bool:
    return t is None or (
        type(t) in (Tensor, torch.nn.Parameter)
        and t.layout is torch.strided
        and not is_functorch_wrapped_tensor(t)
        and not is_legacy_batchedtensor(t)
        and not is_zerotensor(t)  # no memory at all: what autograd passes where a gradient is known to be zero
    )


def why_no_operator(*tensors: Tensor | None) -> str | None:
    """Why not even an operator can take the tensors: plain torch is what a subclass or a transform understands."""
    for t in tensors:
        if t is None:
            continue
        if is_functorch_wrapped_tensor(t) or is_legacy_batchedtensor(t):
            return "a transform of torch.func is at work"
        if type(t) not in (Tensor, torch.nn.Parameter, *recording_types()):
            return f"a tensor is a {type(t).__name__}"
        if t.layout is not torch.strided:
            return f"a tensor's layout is {t.layout}"
    return None


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
