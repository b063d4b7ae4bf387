# SPDX-License-Identifier: Apache-2.0
"""A picture becomes a classifier's input: the one path that validation, evaluation and a published model share.

It needs neither torchvision nor timm; pictures of other sizes than the training images' are resized by Pillow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor


class IBNormImageProcessor(BaseImageProcessor):
    """The pixels that a model of this package was validated on, from pictures of any size.

    A picture is turned upright (EXIF), resized so that it covers ``size``, its centre cut to ``size`` and then to
    ``crop_size``, brought to [0, 1], and normalized.

    Args:
        num_channels: 3 (colour) or 1 (grayscale).
        size: ``{"height": H, "width": W}`` in pixels, of the images that the model was trained on.
        crop_size: the same of the model's input; ``size`` by default.
        image_mean, image_std: of each channel, or one for all, in units of 1.

    Raises:
        ValueError: another number of channels, sizes that do not fit, or a deviation that is not above 0.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        num_channels: int = 3,
        size: dict[str, int] | None = None,
        crop_size: dict[str, int] | None = None,
        image_mean: Sequence[float] = (0.5,),
        image_std: Sequence[float] = (0.5,),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_channels = num_channels
        self.size: Any = _sides(size or {"height": 224, "width": 224}, "size")
        self.crop_size: Any = _sides(crop_size or self.size, "crop_size")
        self.image_mean, self.image_std = _numbers(image_mean, "image_mean"), _numbers(image_std, "image_std")
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels is {num_channels}, not 1 or 3")
        if any(self.crop_size[side] > self.size[side] for side in self.size):
            raise ValueError(f"crop_size {self.crop_size} is larger than size {self.size}")
        if any(len(values) not in (1, num_channels) for values in (self.image_mean, self.image_std)):
            raise ValueError(f"image_mean and image_std have no number for each of {num_channels} channels")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}; it must be above 0")

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """One picture or several -> ``pixel_values`` (N, C, H, W) float32.

        Args:
            images: PIL images, paths, addresses, or uint8 arrays or tensors (H, W), (H, W, C) or (C, H, W).
            return_tensors: ``pt`` or ``np``; None gives a list of tensors.

        Raises:
            TypeError: an option that would change the pixels, or an array of another dtype or shape.
        """
        if kwargs:
            raise TypeError(f"{type(self).__name__} takes no {', '.join(sorted(kwargs))}; load it with other values")
        if torch.is_tensor(images) and images.ndim == 4:
            images = list(images)
        several: Any = images if isinstance(images, list | tuple) else [images]
        pictures: Any = self.fetch_images(several)
        pixels = [self.fit(picture if hasattr(picture, "convert") else _as_picture(picture)) for picture in pictures]
        values = [self.normalize(p[None])[0] for p in pixels]
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def fit(self, picture: Any) -> Tensor:
        """(C, H, W) uint8 of the stored ``size`` from a PIL image."""
        return fit(picture, self.size["height"], self.size["width"], self.num_channels)

    def normalize(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        """(N, C, H, W) uint8 of the stored size, or float in [0, 1] -> the model's input, float32."""
        cut = center_crop(pixels, self.crop_size["height"], self.crop_size["width"])
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=pixels.device) for v in (self.image_mean, self.image_std)
        )
        return normalize(cut, mean, std)


def fit(picture: Any, height: int, width: int, channels: int = 3) -> Tensor:
    """(channels, height, width) uint8 of a PIL image: upright, resized to cover the frame, the centre kept."""
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture).convert("RGB" if channels == 3 else "L")
    wide, high = picture.size
    scale = max(height / high, width / wide)
    covering = (max(width, round(wide * scale)), max(height, round(high * scale)))
    if covering != picture.size:
        picture = picture.resize(covering, resample=2)  # bilinear
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    raw = bytearray(picture.crop((left, top, left + width, top + height)).tobytes())
    return torch.frombuffer(raw, dtype=torch.uint8).view(height, width, channels).permute(2, 0, 1)


def center_crop(images: Tensor, height: int, width: int) -> Tensor:
    """The central height x width of (N, C, H, W); sides that are smaller stay as they are."""
    top, left = max(0, (images.shape[-2] - height) // 2), max(0, (images.shape[-1] - width) // 2)
    return images[..., top : top + height, left : left + width]


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(N, C, H, W) uint8, or float in [0, 1], as float32, minus mean (C,) and over std (C,), both in units of 1."""
    values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    return (values - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


def _as_picture(values: Any) -> Any:
    from PIL import Image

    pixels = torch.as_tensor(values).cpu()
    if pixels.dtype != torch.uint8 or pixels.ndim not in (2, 3):
        kind = f"{tuple(pixels.shape)} {pixels.dtype}"
        raise TypeError(f"an image is a picture, or uint8 of (H, W), (H, W, C) or (C, H, W), not {kind}")
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels.permute(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3):
        raise TypeError(f"an image has 1 or 3 channels, not the shape {tuple(pixels.shape)}")
    pixels = pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    return Image.fromarray(pixels.contiguous().numpy())


def _sides(value: Any, name: str) -> dict[str, int]:
    keys = ("height", "width")
    if not isinstance(value, dict) or any(not isinstance(value.get(k), int) or value[k] < 1 for k in keys):
        raise ValueError(f'{name} is {value!r}, not {{"height": H, "width": W}} in pixels')
    return {key: value[key] for key in keys}


def _numbers(value: Any, name: str) -> list[float]:
    numbers = [value] if isinstance(value, int | float) else value
    if not isinstance(numbers, list | tuple) or not numbers or not all(isinstance(v, int | float) for v in numbers):
        raise ValueError(f"{name} is {value!r}, not a list of numbers")
    return [float(v) for v in numbers]


__all__ = ["IBNormImageProcessor"]
