# SPDX-License-Identifier: Apache-2.0
"""A norm by name: one name, one width, one module. Everything here is answered by the registry of ``specs.py``."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .batch_norms import BatchAreaNorm
from .compression import canonical_name, get_compression, list_compressions, unknown_name
from .functional import NORM_ORDERS, check_lambda, check_order
from .rivals import DynamicTanh as _  # noqa: F401 (importing the file enters its norms in the registry)
from .specs import AREAS, SPECS, NormSpec

_UNSET = {"norm_lambda": None, "norm_order": NORM_ORDERS[0]}


def list_norms(area: str = "token") -> list[str]:
    """Every name that ``create_norm`` understands for an area, registered compressions included.

    The ``batch`` area has one more, ``batchnorm``.
    """
    area = check_area(area)
    names = {name for name, spec in SPECS.items() if area in spec.classes}
    return sorted(names.union(list_compressions()))


def get_spec(name: str) -> NormSpec:
    """What the registry knows of a norm, registered compressions included; ValueError for an unknown name."""
    name = canonical_name(name)
    if name in list_compressions():
        compression = get_compression(name)
        formula = f"standardize(lambda g((x - mean(x)) / lambda)), g(u) = {compression.formula}"
        return replace(
            SPECS["ibnorm-l"],
            name=name,
            formula=formula,
            confidence=compression.confidence,
            arguments={"norm_type": name},
        )
    if name not in SPECS:
        raise unknown_name("norm_type", name, {*SPECS, *list_compressions()})
    return SPECS[name]


def spec_of(module: nn.Module) -> NormSpec | None:
    """The entry of the norm that ``module`` is, ours or torch's own; None for any other module."""
    for cls in type(module).__mro__:
        for spec in SPECS.values():
            if cls in spec.classes.values() and all(getattr(module, k) == v for k, v in spec.arguments.items()):
                return get_spec(str(module.norm_type)) if spec.family == "ibnorm" else spec
    return None


def norm_classes() -> set[type[nn.Module]]:
    """Every class of the registry, over every area."""
    return {cls for spec in SPECS.values() for cls in spec.classes.values()}


def check_area(area: str) -> str:
    """Return the canonical name of an area; ValueError for an unknown one."""
    name = canonical_name(area)
    if name not in AREAS:
        raise unknown_name("area", area, AREAS)
    return name


def check_norm_type(norm_type: str, area: str = "token") -> str:
    """Return the canonical name of a norm; ValueError, with the known names and the nearest, for an unknown one."""
    name = canonical_name(norm_type)
    if name == "batchnorm" and area != "batch":
        raise ValueError("norm_type 'batchnorm' is for a host that normalizes over the batch, such as ResNet.")
    if name not in list_norms(area):
        raise unknown_name("norm_type", norm_type, list_norms(area))
    return name


def check_norm_flags(norm_type: str, norm_lambda: float | None, norm_order: str, area: str = "token") -> None:
    """ValueError where a flag is outside its domain or would be ignored by this norm_type."""
    spec = get_spec(check_norm_type(norm_type, area))
    if norm_lambda is not None:
        check_lambda(norm_lambda)
    order = check_order(norm_order)
    if area == "batch" and order != NORM_ORDERS[0] and "norm_order" in spec.options:
        raise ValueError(f"norm_order={order} is for the features of a token; over a batch there is only one order.")
    for flag, value in (("norm_lambda", norm_lambda), ("norm_order", order)):
        if value != _UNSET[flag] and flag not in spec.options:
            raise ValueError(
                f"{flag}={value} has no meaning for '{spec.name}', which compresses nothing; leave it unset."
            )


def create_norm(
    name: str,
    width: int,
    *,
    eps: float = 1e-5,
    norm_lambda: float | None = None,
    norm_order: str = "compress-first",
    norm_affine: bool = True,
    norm_bias: bool = True,
    area: str = "token",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A norm by name.

    Args:
        name: one of ``list_norms(area)``, blind to case and to ``_`` against ``-``.
        width: size of the last dimension, or the channels of an image.
        eps: added to the variance (``dyt`` has no use for it).
        norm_lambda, norm_order: IBNorm's; see ``IBNorm``.
        norm_affine, norm_bias: learn a weight, and a bias beside it.
        area: which elements share statistics: ``token``, the last dimension; ``batch``, N, H and W of each channel of
            (N, C, H, W), as in BatchNorm2d; ``channel``, the channels of each pixel of (N, C, H, W). Norms that are
            not defined over a batch (``layernorm``, ``rmsnorm``, ``dyt``) take the channels there.

    Raises:
        ValueError: an unknown name, or a flag outside its domain or without meaning for this norm.
    """
    area = check_area(area)
    check_norm_flags(name, norm_lambda, norm_order, area)
    spec = get_spec(name)
    flags = {"norm_lambda": norm_lambda, "norm_order": norm_order}
    options = {flag: value for flag, value in flags.items() if flag in spec.options and value != _UNSET[flag]}
    options |= spec.arguments | {"device": device, "dtype": dtype}
    return _construct(spec.classes[area], width, eps, norm_affine, norm_bias, options)


def _construct(cls: Any, width: int, eps: float, affine: bool, bias: bool, options: dict[str, Any]) -> nn.Module:
    # Torch's own classes, and those over the batch that stand in for one, have another signature than ours.
    if issubclass(cls, nn.LayerNorm):
        return cls(width, eps, affine, bias, **options)
    if issubclass(cls, nn.BatchNorm2d):
        return _batch_norm(cls, width, eps, affine, bias, options)
    switch = "affine" if issubclass(cls, BatchAreaNorm) else "norm_affine"
    module: nn.Module = cls(width, eps, norm_bias=bias, **{switch: affine}, **options)
    return module


def _batch_norm(cls: Any, channels: int, eps: float, affine: bool, bias: bool, options: dict[str, Any]) -> nn.Module:
    norm: nn.BatchNorm2d = cls(channels, eps, affine=affine, **options)
    if not bias:
        norm.register_parameter("bias", None)
    if norm.bias is None:
        norm._is_hf_initialized = True  # type: ignore[assignment] # transformers' ResNet expects both; see `init_norms`
    return norm
