# SPDX-License-Identifier: Apache-2.0
"""Augmentation of a batch in plain torch: each image draws its own crop and flip from one generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of (N, C, H, W) uint8, in units of 1."""
    values = pixels.float() / 255
    std, mean = torch.std_mean(values, (0, 2, 3))
    return mean, std.clamp(min=1e-3)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of (N, C, H, W) left to right with probability 1/2."""
    flip = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    return torch.where(flip.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad (N, C, H, W) by zeros on each side and cut an H x W window at a place of its own from each image."""
    n, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator, device=generator.device).to(
        images.device
    )
    rows = (top[:, None] + torch.arange(h, device=images.device))[:, None, :, None]
    columns = (left[:, None] + torch.arange(w, device=images.device))[:, None, None, :]
    each = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(c, device=images.device)[None, :, None, None]
    return padded[each, channel, rows, columns]


def random_resized_crop(
    images: Tensor,
    size: int,
    generator: torch.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cut a window of random area and shape from each image of (N, C, H, W), resampled to (N, C, size, size) float32.

    Area is a share of the image, ratio the width over the height, uniform in its logarithm; a window that would not
    fit is narrowed to the image. Sampling is bilinear without a filter against aliasing.
    """
    n, _, height, width = images.shape
    draw = torch.rand(4, n, generator=generator, device=generator.device).to(images.device)
    share = area[0] + (area[1] - area[0]) * draw[0]
    shape = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draw[1])
    wide = torch.sqrt(share * height * width * shape).clamp(max=width) / width
    high = torch.sqrt(share * height * width / shape).clamp(max=height) / height
    x, y = (draw[2] * 2 - 1) * (1 - wide), (draw[3] * 2 - 1) * (1 - high)  # centre, in [-1, 1]
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([wide, zero, x], -1), torch.stack([zero, high, y], -1)], 1)
    grid = F.affine_grid(theta, [n, images.shape[1], size, size], align_corners=False)
    values = images.float() / 255 if images.dtype == torch.uint8 else images
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
