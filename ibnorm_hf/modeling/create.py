# SPDX-License-Identifier: Apache-2.0
"""A norm by name: one name, one width, one module. Everything here is answered by the registry of ``specs.py``."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .batch_norms import BatchAreaNorm
from .compression import canonical_name, get_compression, list_compressions, unknown_name
from .functional import NORM_ORDERS, check_lambda, check_order
from .norms import ScaledLayerNorm
from .private_transformers import mark_initialized
from .rivals import DynamicTanh as DynamicTanh  # importing the file enters its norms in the registry
from .sites import Site
from .specs import AREAS, SPECS, NormSpec

_UNSET: dict[str, Any] = {"norm_lambda": None, "norm_order": NORM_ORDERS[0], "norm_lambda_learned": False}
DEPTH_SCALES = ("sqrt",)


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
            status="ours" if compression.confidence.startswith("ours") else "reconstructed",
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
    return {ScaledLayerNorm, *(cls for spec in SPECS.values() for cls in spec.classes.values())}


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


def check_norm_flags(
    norm_type: str,
    norm_lambda: float | None,
    norm_order: str,
    area: str = "token",
    norm_lambda_learned: bool = False,
    norm_depth_scale: str | None = None,
) -> None:
    """ValueError where a flag is outside its domain or would be ignored by this norm_type."""
    spec = get_spec(check_norm_type(norm_type, area))
    if norm_lambda is not None:
        check_lambda(norm_lambda)
    order = check_order(norm_order)
    if area == "batch" and order != NORM_ORDERS[0] and "norm_order" in spec.options:
        raise ValueError(f"norm_order={order} is for the features of a token; over a batch there is only one order.")
    if norm_depth_scale is not None and norm_depth_scale not in DEPTH_SCALES:
        raise unknown_name("norm_depth_scale", norm_depth_scale, DEPTH_SCALES)
    if norm_depth_scale is not None and area != "token":
        raise ValueError(
            f"norm_depth_scale={norm_depth_scale} is for norms in front of attention and MLP, not over a batch."
        )
    for flag, value in (
        ("norm_lambda", norm_lambda),
        ("norm_order", order),
        ("norm_lambda_learned", norm_lambda_learned),
    ):
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
    norm_lambda_learned: bool = False,
    norm_depth_scale: str | None = None,
    site: Site | None = None,
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
        norm_lambda_learned: learn lambda, one a norm, from the value it would else keep. IBNorm only.
        norm_depth_scale: ``sqrt`` divides the output by the square root of the site's layer, in front of attention and
            MLP (LayerNorm scaling, arXiv:2502.05795); any norm over the features of a token.
        site: where the norm will stand, for these two and for norms whose start values are published by site.
        area: which elements share statistics: ``token``, the last dimension; ``batch``, N, H and W of each channel of
            (N, C, H, W), as in BatchNorm2d; ``channel``, the channels of each pixel of (N, C, H, W). Norms that are
            not defined over a batch (``layernorm``, ``rmsnorm``, ``dyt``) take the channels there.

    Raises:
        ValueError: an unknown name, or a flag outside its domain or without meaning for this norm.
    """
    area = check_area(area)
    check_norm_flags(name, norm_lambda, norm_order, area, norm_lambda_learned, norm_depth_scale)
    spec, site = get_spec(name), site or Site(width=width)
    flags = {"norm_lambda": norm_lambda, "norm_order": norm_order, "norm_lambda_learned": norm_lambda_learned}
    options: dict[str, Any] = {
        flag: value for flag, value in flags.items() if flag in spec.options and value != _UNSET[flag]
    }
    options.update(spec.arguments, device=device, dtype=dtype, **(spec.start_at(site) if spec.start_at else {}))
    norm = _construct(spec.classes[area], width, eps, norm_affine, norm_bias, options)
    scaled = norm_depth_scale is not None and site.kind in ("attention", "mlp")
    return scaled_by(norm, site.layer**-0.5) if scaled else norm


def scaled_by(norm: nn.Module, output_scale: float) -> nn.Module:
    """``norm`` with its output times a constant, in place; a norm over the features of a token."""
    if type(norm) is nn.LayerNorm:
        norm.__class__ = ScaledLayerNorm
    norm.output_scale = output_scale  # type: ignore[assignment]
    return norm


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
        mark_initialized(norm)  # transformers' ResNet expects both; see `init_norms`
    return norm
