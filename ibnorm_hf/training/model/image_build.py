# SPDX-License-Identifier: Apache-2.0
"""Recipe -> images, config, model, and the views of an image that the model is trained and judged on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from ...common.errors import UserError, did_you_mean
from ...common.paths import cache_root
from ...modeling.image_processing_ibnorm import IBNormImageProcessor, center_crop, normalize
from ...modeling.sync_norms import IBSyncBatchNorm2d
from ..images.augment import channel_moments, random_crop, random_flip, random_resized_crop
from ..images.images import ImageData, is_idx_folder, load_datasets, load_digits, load_folder, load_idx
from ..keys.image_arguments import ImageArguments
from ..keys.recipe import Recipe
from .build import checked_flags, checked_sizes, config_of, defaults_of, fresh_model

_FROM_DATA = {"num_labels": "classes", "num_channels": "images", "image_size": "image_size"}
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet-1k": 1000}


@dataclass(frozen=True)
class ImageFacts:
    """What a model must know of its images: (C, H, W) of its input, and the number of classes."""

    channels: int
    height: int
    width: int
    classes: int


def arguments_of(recipe: Recipe) -> ImageArguments:
    """The recipe's keys of images."""
    data: Any = recipe.data
    assert isinstance(data, ImageArguments)
    return data


def load_images(arguments: ImageArguments, commit: str | None = None) -> ImageData:
    """The training and validation images of a recipe; those of the Hub are downloaded once by ``datasets``.

    ``commit`` is that of the Hub at which a run was begun, if it was.

    Raises:
        UserError: they cannot be loaded, or have another number of classes than the recipe says.
    """
    if arguments.images == "digits":
        data = load_digits()
    elif is_idx_folder(Path(arguments.images)):
        data = load_idx(arguments.images)
    elif Path(arguments.images).is_dir():
        data = load_folder(
            Path(arguments.images),
            size=arguments.stored_size or arguments.image_size,
            train=arguments.train_split,
            validation=arguments.validation_split,
            most_bad=arguments.max_bad_records,
        )
    else:
        if arguments.images.startswith((".", "/", "~")) or arguments.images.count("/") > 1:
            raise UserError(f"images {arguments.images} do not exist; give a folder, `digits` or a Hub name")
        if arguments.image_size is None:
            raise UserError(f"a data set of the Hub needs image_size; give the side that {arguments.images} is read at")
        data = load_datasets(
            arguments.images,
            config=arguments.images_config,
            revision=commit or arguments.images_revision,
            size=arguments.stored_size or arguments.image_size,
            train=arguments.train_split,
            validation=arguments.validation_split,
            cache=cache_root(),
        )
    if arguments.classes not in (None, len(data.classes)):
        raise UserError(f"classes is {arguments.classes}, but {arguments.images} has {len(data.classes)}")
    return data


def planned_facts(arguments: ImageArguments) -> ImageFacts:
    """Shape and classes without a download, for a plan.

    Raises:
        UserError: the recipe does not say enough.
    """
    if arguments.images == "digits" or is_idx_folder(Path(arguments.images)):
        return facts_of(load_images(arguments), arguments)
    classes = arguments.classes or _CLASSES.get(arguments.images.rpartition("/")[2])
    if classes is None or arguments.image_size is None:
        raise UserError(f"a plan for {arguments.images} needs the keys classes and image_size")
    return ImageFacts(3, arguments.image_size, arguments.image_size, classes)


def facts_of(data: ImageData, arguments: ImageArguments) -> ImageFacts:
    """Shape of the model's input and classes of loaded data."""
    c, h, w = data.shape
    size = arguments.image_size
    if size is not None and (h < size or w < size):
        raise UserError(f"image_size is {size}, but the images are {h} x {w}")
    return ImageFacts(c, size or h, size or w, len(data.classes))


def build_image_config(recipe: Recipe, facts: ImageFacts, classes: tuple[str, ...] = ()) -> PreTrainedConfig:
    """The model's config: the model type's defaults, the recipe's sizes and norm flags, the data's shape and classes.

    Raises:
        UserError: the model type, a size or a flag is unknown or outside its domain.
    """
    kind = recipe.model.model_type
    defaults = defaults_of(kind)
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as known

    types = [str(getattr(config, "model_type", "")) for config in known]
    if kind not in types:
        ours = [name for name in types if name.startswith("ibnorm_")]
        raise UserError(f"key model_type: '{kind}' classifies no images{did_you_mean(kind, ours)}")
    for name in recipe.sizes:
        if name in _FROM_DATA:
            raise UserError(f"key model.{name}: it follows from the data; see the key {_FROM_DATA[name]}")
    values = checked_sizes(recipe, defaults) | checked_flags(recipe, defaults)
    values |= {"num_channels": facts.channels, "num_labels": facts.classes}
    if classes:
        values |= {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
        del values["num_labels"]
    if "image_size" in defaults:
        if facts.height != facts.width:
            raise UserError(f"{kind} takes square images, not {facts.height} x {facts.width}; give image_size")
        patch = values.get("patch_size", defaults.get("patch_size"))
        if isinstance(patch, int) and facts.height % patch:
            raise UserError(f"model.patch_size {patch} does not divide the image's side {facts.height}")
        values["image_size"] = facts.height
    config: PreTrainedConfig = config_of(lambda: AutoConfig.for_model(kind, **values))
    return config


def build_image_model(config: PreTrainedConfig, *, device: str = "cpu", sync: bool = False) -> PreTrainedModel:
    """A freshly initialised classifier in fp32; ``device="meta"`` allocates nothing.

    Args:
        sync: compute batch statistics over all processes.

    Raises:
        UserError: the sizes do not fit together.
    """
    model: PreTrainedModel = fresh_model(AutoModelForImageClassification, config, device)
    if sync:
        IBSyncBatchNorm2d.convert(model)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


class Views:
    """uint8 images -> the model's input: augmented for training, the centre for validation, normalized both.

    ``processor`` does the latter from a picture of any kind; it is saved beside the weights.
    """

    def __init__(self, arguments: ImageArguments, facts: ImageFacts, data: ImageData | None = None) -> None:
        self.arguments, self.size = arguments, facts.height
        if arguments.image_mean is not None and arguments.image_std is not None:
            if len(arguments.image_mean) not in (1, facts.channels):
                raise UserError(
                    f"image_mean has {len(arguments.image_mean)} numbers, the images {facts.channels} channels"
                )
            moments = [torch.tensor(v, dtype=torch.float32) for v in (arguments.image_mean, arguments.image_std)]
        elif data is not None and hasattr(data.train, "pixels"):
            moments = list(channel_moments(data.train.pixels))
        else:
            moments = [torch.full((facts.channels,), 0.5, dtype=torch.float32)] * 2
        self.mean, self.std = moments
        height, width = (facts.height, facts.width) if data is None else data.shape[1:]
        self.processor = IBNormImageProcessor(
            num_channels=facts.channels,
            size={"height": height, "width": width},
            crop_size={"height": facts.height, "width": facts.width},
            image_mean=self.mean.tolist(),
            image_std=self.std.tolist(),
        )

    def train(self, pixels: Tensor, draw: str) -> Tensor:
        """(N, C, H, W) uint8 -> augmented, normalized float32; ``draw`` names the batch, and decides its chances."""
        digest = hashlib.sha256(draw.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        kind = self.arguments.augmentation
        if kind == "resized-crop-flip":
            pixels = random_resized_crop(pixels, self.size, generator, area=(self.arguments.crop_area, 1.0))
        elif self.arguments.image_size is not None:
            pixels = center_crop(pixels, self.size, self.size)
        if kind in ("crop", "crop-flip"):
            pixels = random_crop(pixels, self.arguments.crop_padding, generator)
        if kind.endswith("flip"):
            pixels = random_flip(pixels, generator)
        return normalize(pixels, self.mean.to(pixels.device), self.std.to(pixels.device))

    def evaluate(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) uint8, or float in [0, 1] -> normalized float32, the centre where the model takes less."""
        return self.processor.normalize(pixels)
