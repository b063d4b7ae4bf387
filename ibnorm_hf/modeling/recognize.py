# SPDX-License-Identifier: Apache-2.0
"""What a norm of any model computes, found out by trying it: its family, area, width and eps."""

import inspect
from collections.abc import Iterator

import torch
from torch import nn

from .batch_norms import BatchAreaNorm
from .channel_norms import ChannelFirst
from .create import spec_of
from .norms import ScaledLayerNorm, TokenNorm
from .private_torch import copy_with
from .wrappers import plain_path, unwrapped


def iter_norms(model: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Every norm of ``model`` in module order: its path, and the modules that stand there.

    There is one module a norm, except under PEFT, where the frozen original comes first and is followed by the copy
    of each adapter that trains the norm; the path is then that of the model without PEFT.
    """
    base = unwrapped(model)
    norms: dict[str, list[nn.Module]] = {}
    for path, module in base.named_modules():
        if _looks_like_norm(module):
            norms.setdefault(plain_path(base, path), []).append(module)
    yield from norms.items()


def norm_name(module: nn.Module) -> str | None:
    """The ``norm_type`` that a module of this package (or torch's own) implements; None for any other module."""
    spec = spec_of(module)
    return None if spec is None else spec.name


def _looks_like_norm(module: nn.Module) -> bool:
    by_name = "norm" in type(module).__name__.lower() or isinstance(
        module, (TokenNorm, BatchAreaNorm, nn.LayerNorm, nn.RMSNorm)
    )
    return by_name and not any(True for _ in module.children())


def family_of(module: nn.Module) -> str | None:
    """Recognise a norm by what its class computes on a small random input with random weights."""
    spec = spec_of(module)
    if spec is not None and isinstance(module, TokenNorm | BatchAreaNorm | ScaledLayerNorm):
        return spec.family
    if type(module) is nn.BatchNorm2d:
        return "batchnorm"
    width, eps = width_of(module), eps_of(module)
    if width is None or eps is None or {n for n, _ in module.named_parameters()} - {"weight", "bias"}:
        return None
    if type(module).__module__.startswith("liger_kernel.") and not getattr(module, "offset", 0):
        # Its kernels need a GPU, so a trial says nothing; it puts these classes into transformers' own modules.
        return {"LigerRMSNorm": "rmsnorm", "LigerLayerNorm": "layernorm"}.get(type(module).__name__)
    if any(True for _ in module.buffers()) or not _takes_one_tensor(module):
        return None  # a buffer would be lost, and may be read by the model around the norm
    return _try(module, width, eps)


def _takes_one_tensor(module: nn.Module) -> bool:
    """Whether forward has no further argument, such as the gate of Mamba2's norm, that another norm would not take."""
    return len(inspect.signature(type(module).forward).parameters) == 2


def _try(module: nn.Module, width: int, eps: float) -> str | None:
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False):
        # No other dimension has this width: a norm over one fails, or shows. The small input shows eps.
        x = torch.randn(2, 4 if width == 3 else 3, width, generator=generator, dtype=torch.float32) + 0.5
        random = {name: torch.randn(width, generator=generator, dtype=x.dtype) for name, _ in module.named_parameters()}
        trial = copy_with(module, random)  # shares nothing that is written to, and carries no hook into the call
        inputs = (x, x * eps**0.5)
        try:
            outputs = [type(module).forward(trial, values.clone()) for values in inputs]
        except Exception:
            return None
        weight, bias = random.get("weight", 1), random.get("bias", 0)
        for family, gain in (("layernorm", weight), ("rmsnorm", weight), ("rmsnorm-1p", 1 + weight)):
            expected = [_standardized(values, family, eps) * gain + bias for values in inputs]
            if all(_equal(y, e) for y, e in zip(outputs, expected, strict=True)):
                return family
    return None


def _standardized(x: torch.Tensor, family: str, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True) if family == "layernorm" else x
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)


def _equal(y: object, expected: torch.Tensor) -> bool:
    return isinstance(y, torch.Tensor) and y.shape == expected.shape and torch.allclose(y, expected, 1e-4, 2e-5)


def gain_offset_of(module: nn.Module) -> float:
    """What the weight of a norm is added to before it is a feature's gain: 1 in Gemma's and Qwen3-Next's, else 0."""
    offset = getattr(module, "gain_offset", None)
    return float(family_of(module) == "rmsnorm-1p") if offset is None else float(offset)  # type: ignore[arg-type]


def area_of(module: nn.Module) -> str:
    if isinstance(module, (BatchAreaNorm, nn.BatchNorm2d)):
        return "batch"
    return "channel" if isinstance(module, ChannelFirst) else "token"


def width_of(module: nn.Module) -> int | None:
    if area_of(module) == "batch":
        return int(module.num_features)  # type: ignore[arg-type]
    shape = getattr(module, "normalized_shape", None)
    if shape is None:
        weight = getattr(module, "weight", None)
        shape = (getattr(module, "width", None),) if weight is None else weight.shape
    return shape[0] if len(shape) == 1 else None


def eps_of(module: nn.Module) -> float | None:
    for name in ("eps", "variance_epsilon", "epsilon"):
        if hasattr(module, name):
            eps = getattr(module, name)
            return torch.finfo(torch.float32).eps if eps is None else float(eps)
    return None
