# SPDX-License-Identifier: Apache-2.0
"""Corruptions of images made on the fly, in five severities: noise, blur and contrast.

They are of the kind of ImageNet-C (Hendrycks and Dietterich, arXiv:1903.12261) and not its files: numbers are not
comparable with published ones. Noise grows with an image's own contrast and blur with its size, so that a severity is
about the same loss to 8 x 8 digits and to larger or paler pictures: 1 is mild, and 5 leaves little.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = ("noise", "blur", "contrast")
_NOISE = (0.2, 0.33, 0.5, 0.7, 1.0)  # standard deviation, as a share of that of the image's values
_BLUR = (0.02, 0.032, 0.048, 0.065, 0.085)  # standard deviation, as a share of the image's height ...
_LEAST_BLUR = 0.4  # ... beyond as many pixels, which change next to nothing
_CONTRAST = (0.93, 0.85, 0.75, 0.6, 0.4)  # what is left of the distance from the image's mean


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
        spread = images.std((1, 2, 3), correction=0, keepdim=True)
        return (images + _NOISE[level] * spread * noise).clamp(0, 1)
    if name == "blur":
        return gaussian_blur(images, math.hypot(_LEAST_BLUR, _BLUR[level] * images.shape[-2]))
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
