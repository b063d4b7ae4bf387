# SPDX-License-Identifier: Apache-2.0
"""Norms of (N, C, H, W) by name: what ``create_norm`` makes for the areas ``batch`` and ``channel``."""

from typing import Any

import torch
from torch import nn

from .batch_norms import IBBatchNorm2d, NormalBatchNorm2d
from .channel_norms import DynamicTanh2d, IBNorm2d, LayerNorm2d, NormalNorm2d, RMSNorm2d


def create_image_norm(
    name: str,
    channels: int,
    area: str,
    *,
    eps: float,
    norm_lambda: float | None,
    norm_order: str,
    norm_affine: bool,
    norm_bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """``create_norm`` for images; its arguments are already checked, and ``name`` is canonical."""
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    noise = name == "normalnorm"
    if name == "layernorm":
        return LayerNorm2d(channels, eps, norm_affine, norm_bias, device, dtype)
    if name in ("rmsnorm", "dyt"):
        plain: Any = RMSNorm2d if name == "rmsnorm" else DynamicTanh2d
        return plain(channels, eps, norm_affine=norm_affine, norm_bias=norm_bias, **where)
    if area == "batch":
        if name == "batchnorm":
            return _batch_norm(channels, eps, norm_affine, norm_bias, device, dtype)
        if name in ("normalnorm", "normalnorm-noiseless"):
            return NormalBatchNorm2d(channels, eps, affine=norm_affine, noise=noise, norm_bias=norm_bias, **where)
        options: dict[str, Any] = {"norm_type": name, "norm_lambda": norm_lambda, "norm_bias": norm_bias}
        return IBBatchNorm2d(channels, eps, affine=norm_affine, **options, **where)
    affine: dict[str, Any] = {"norm_affine": norm_affine, "norm_bias": norm_bias}
    if name in ("normalnorm", "normalnorm-noiseless"):
        return NormalNorm2d(channels, eps, noise=noise, **affine, **where)
    return IBNorm2d(channels, eps, norm_type=name, norm_lambda=norm_lambda, norm_order=norm_order, **affine, **where)


def _batch_norm(
    channels: int,
    eps: float,
    affine: bool,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps, affine=affine, device=device, dtype=dtype)
    if not bias:
        norm.register_parameter("bias", None)
    if norm.bias is None:
        norm._is_hf_initialized = True  # type: ignore[assignment] # transformers' ResNet expects both; see `init_norms`
    return norm
