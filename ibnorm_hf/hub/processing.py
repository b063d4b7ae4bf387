# SPDX-License-Identifier: Apache-2.0
"""What turns text or pictures into a model's input travels with it: its tokenizer, its image processor."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..common.errors import UserError, one_line
from ..common.listing import require_regular
from ..common.paths import write_json
from ..common.strict_json import read_object
from ..common.vocabulary import beyond
from ..modeling.image_processing_ibnorm import IBNormImageProcessor
from .code import MODELING

# Copied as they are, so that the published tokenizer is the trained one to the byte.
_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer stands beside the weights."""
    return (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file()


def copy_processing(model: Path, target: Path, config: PreTrainedConfig) -> None:
    """Copy the tokenizer and the image processor of a model folder into an export.

    Raises:
        UserError: one of them is damaged, comes with code of its own, or has ids that the model has not.
    """
    names = set(_FILES)
    if has_tokenizer(model):
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except Exception as error:
            raise UserError(f"tokenizer of {model} cannot be loaded: {one_line(error)}") from None
        rows = getattr(config, "vocab_size", None)
        if rows is not None and (too_many := beyond(tokenizer, rows)):
            raise UserError(f"tokenizer of {model} has {too_many}, the model only {rows} rows")
        names |= set(tokenizer.vocab_files_names.values())
    for name in sorted(names):
        if (model / name).is_file():
            shutil.copyfile(model / name, target / name)
    if os.path.lexists(model / IMAGE_PROCESSOR_NAME):
        copy_image_processor(require_regular(model / IMAGE_PROCESSOR_NAME, model), target)


def copy_image_processor(path: Path, target: Path) -> None:
    """Copy an image processor's settings, and of ours the code, so that it loads where this package is absent.

    Raises:
        UserError: as ``image_processor_settings``.
    """
    content = image_processor_settings(path)
    kind = IBNormImageProcessor.__name__
    if content.get("image_processor_type") == kind:
        module = IBNormImageProcessor.__module__.rpartition(".")[2]
        content["auto_map"] = {"AutoImageProcessor": f"{module}.{kind}"}
        shutil.copyfile(MODELING / f"{module}.py", target / f"{module}.py")
    write_json(target / IMAGE_PROCESSOR_NAME, content)


def image_processor_settings(path: Path) -> dict[str, Any]:
    """The settings of an image processor, without a word of code beside it.

    Raises:
        UserError: it is damaged, or comes with code of its own, which is neither run nor carried.
    """
    content = read_object(path)
    if content.get("image_processor_type") == IBNormImageProcessor.__name__:
        require_processor(content, path)
        content.pop("auto_map", None)
    elif "auto_map" in content:
        raise UserError(
            f"{path} names an image processor with code of its own, which is never run: save one of transformers there"
        )
    return content


def require_processor(content: dict[str, Any], path: Path) -> IBNormImageProcessor:
    """The image processor that settings make. Raises UserError where they make none."""
    try:
        return IBNormImageProcessor(**content)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from None


def pictures(model: Path) -> str:
    """What a card says of how a picture becomes the model's input."""
    path = model / IMAGE_PROCESSOR_NAME
    if not path.is_file():
        return (
            "No image processor stands beside the weights: how the pixels of a picture are to be cut and normalized is "
            "not recorded here."
        )
    content = read_object(require_regular(path, model))
    kind = content.get("image_processor_type")
    if kind != IBNormImageProcessor.__name__:
        return "The image processor beside the weights is that of the model it was made from."
    made = require_processor(content, path)
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (made.image_mean, made.image_std))
    size, crop = (f"{sides['width']} x {sides['height']}" for sides in (made.size, made.crop_size))
    return (
        f"`AutoImageProcessor` turns a picture of any size into the model's input: {made.num_channels} channel"
        f"{'s' if made.num_channels > 1 else ''}, resized so that it covers {size} pixels, its centre cut to {crop}, "
        f"mean {mean} and standard deviation {std} in units of 1. Validation during training went the same way: a "
        "picture gives the same pixels to the bit, without torchvision or timm."
    )
