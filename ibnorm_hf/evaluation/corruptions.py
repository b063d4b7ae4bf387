# SPDX-License-Identifier: Apache-2.0
"""Corruptions of images made on the fly, in five severities: noise, blur and contrast.

They are of the kind of ImageNet-C (Hendrycks and Dietterich, arXiv:1903.12261) and not its files: numbers are not
comparable with published ones. Blur grows with the image, so that 8 x 8 and 224 x 224 lose about the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = ("noise", "blur", "contrast")
_NOISE = (0.04, 0.08, 0.16, 0.24, 0.32)  # standard deviation, of a range of 1
_BLUR = (0.015, 0.025, 0.04, 0.06, 0.08)  # standard deviation, as a share of the image's height
_LEAST_BLUR = (0.4, 0.5, 0.6, 0.7, 0.85)  # pixels: less changes no pixel of a small image
_CONTRAST = (0.6, 0.45, 0.3, 0.2, 0.1)  # what is left of the distance from the image's mean


def corrupt(images: Tensor, name: str, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupt (N, C, H, W) float in [0, 1]; the result is in [0, 1] too.

    Raises:
        ValueError: an unknown corruption or severity.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"no corruption '{name}' of severity {severity}; known: {', '.join(CORRUPTIONS)}, 1 to 5.")
    level = severity - 1
    if name == "noise":
        noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)
        return (images + _NOISE[level] * noise).clamp(0, 1)
    if name == "blur":
        return gaussian_blur(images, max(_LEAST_BLUR[level], _BLUR[level] * images.shape[-2]))
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + _CONTRAST[level] * (images - mean)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur (N, C, H, W) by a Gaussian of ``sigma`` pixels, edges repeated."""
    radius = max(1, math.ceil(3 * sigma))
    at = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    blurred = F.conv2d(padded, kernel[..., None], groups=images.shape[1])
    return F.conv2d(blurred, kernel[..., None, :], groups=images.shape[1])
