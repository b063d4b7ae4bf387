# SPDX-License-Identifier: Apache-2.0
"""The square that an image file becomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def square(image: Any, size: int) -> Tensor:
    """(3, size, size) uint8 of a PIL image: the shorter side resized to ``size``, the centre kept."""
    image = image.convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), resample=2)  # bilinear
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
