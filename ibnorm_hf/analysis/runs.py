# SPDX-License-Identifier: Apache-2.0
"""Runs that are analyzed: opened by their folders, held against each other, and gathered into arms of several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from ..common.held_out import load_validation_blocks
from ..common.packed import COLUMN, unpack
from ..common.run import Run, adapter_config, is_adapter, is_run, model_config, model_folder
from ..modeling.create import get_spec
from ..modeling.specs import SPECS
from ..pretrained import load_pretrained
from .capture import Batch, image_batch, text_batch

FLAGS = ("norm_lambda", "norm_order", "norm_affine", "norm_bias", "norm_lambda_learned", "norm_depth_scale")
# Two runs are held against each other only where these agree; the norm, the seed and the tuned rate may differ.
_SAME = ("model_type", "model", "train_only", "adapter", "max_steps", "global_batch_size", "corpus", "images")
_BATCH = 16


@dataclass(frozen=True)
class Source:
    """What training knows of a run and no file holds.

    Args:
        initial_model: run folder -> the model before its first step.
        held_out_images: run folder -> (validation images, what makes them the model's input).
    """

    initial_model: Callable[[Path], Any]
    held_out_images: Callable[[Path], tuple[Any, Callable[[Any], Any]]]


@dataclass(frozen=True)
class Opened:
    """A finished run.

    Attributes:
        arm: the norm flags that are set, in words: ``ibnorm-l``, ``ibnorm-l lambda 1``.
        flags: norm type, lambda (a number, one a norm, or None) and order, as ``create_norm`` takes them.
    """

    run: Run
    arm: str
    flags: dict[str, Any]
    seed: int

    @property
    def is_of_images(self) -> bool:
        """Whether it classifies images."""
        return "images" in self.run.config


def open_run(folder: str | Path) -> Opened:
    """Open a finished run.

    Raises:
        UserError: no run, not finished, or damaged.
    """
    run = Run(folder)
    if not is_run(folder):
        raise UserError(f"{folder} is no run: config.yaml is missing; give folders of runs")
    place = model_folder(run.folder)
    recipe = run.config
    content: dict[str, Any] = {} if is_adapter(place) else dict(model_config(place))
    norm = content.get("norm_type") or recipe.get("norm_type") or "its own norms"
    flags = {
        "norm_lambda": content.get("norm_lambda", recipe.get("norm_lambda")),
        "norm_order": content.get("norm_order") or recipe.get("norm_order") or "compress-first",
    }
    words = [str(norm)]
    for flag in FLAGS:
        value = flags["norm_lambda"] if flag == "norm_lambda" else recipe.get(flag)
        if value is not None and not (flag == "norm_order" and value == "compress-first"):
            words.append(f"{flag.removeprefix('norm_').replace('_', ' ')} {_short(value)}")
    seed = recipe.get("seed", 42)
    return Opened(run, " ".join(words), {"norm_type": norm, **flags}, int(seed))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{min(value):g}...{max(value):g}"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def gather(folders: list[str]) -> dict[str, list[Opened]]:
    """Runs by arm, in the order given, seeds ascending.

    Raises:
        UserError: two runs differ in more than norm, seed and rate, or an arm has a seed twice.
    """
    runs = [open_run(folder) for folder in dict.fromkeys(folders)]
    arms: dict[str, list[Opened]] = {}
    for opened in runs:
        if (key := _difference(runs[0].run, opened.run)) is not None:
            raise UserError(
                f"runs {runs[0].run.folder} and {opened.run.folder} differ in {key}, so their layers are not "
                "comparable; analyze them apart"
            )
        arm = arms.setdefault(opened.arm, [])
        if any(other.seed == opened.seed for other in arm):
            raise UserError(f"arm {opened.arm} has two runs of seed {opened.seed}; leave {opened.run.folder} out")
        arm.append(opened)
    return {name: sorted(arm, key=lambda opened: opened.seed) for name, arm in arms.items()}


def _difference(one: Run, two: Run) -> str | None:
    for key in _SAME:
        if one.config.get(key) != two.config.get(key):
            return f"key {key}"
    if (one.config.get("pretrained") is None) != (two.config.get("pretrained") is None):
        return "key pretrained"
    if one.data.get("validation", {}).get("sha256") != two.data.get("validation", {}).get("sha256"):
        return "their held-out data"
    return None


def trained_model(opened: Opened) -> Any:
    """The model of a run, an adapter on its base, in fp32. Raises UserError where it cannot be loaded."""
    place = model_folder(opened.run.folder)
    if not is_adapter(place):
        return load_pretrained(str(place)).model
    from peft import PeftModel

    return PeftModel.from_pretrained(
        load_pretrained(str(adapter_config(place)["base_model_name_or_path"])).model, place
    )


def held_out(opened: Opened, source: Source, *, samples: int, seed: int) -> Iterator[Batch]:
    """Batches of a run's held-out data in an order by the seed: all of it, or sixteen positions for each sample."""
    generator = torch.Generator().manual_seed(seed)
    if opened.is_of_images:
        images, prepare = source.held_out_images(opened.run.folder)
        order = torch.randperm(len(images), generator=generator).tolist()
        for start in range(0, len(order), 8 * _BATCH):
            rows = [images[i] for i in order[start : start + 8 * _BATCH]]
            pixels = torch.stack([row["pixel_values"] for row in rows])
            yield image_batch(prepare(pixels), torch.tensor([int(row["labels"]) for row in rows]))
        return
    blocks, _ = load_validation_blocks(opened.run.folder, None)
    length = blocks[0][COLUMN].shape[-1]
    enough = math.ceil(16 * samples / length)
    order = torch.randperm(len(blocks), generator=generator)[:enough].tolist()
    for start in range(0, len(order), _BATCH):
        yield text_batch(*unpack(blocks[order[start : start + _BATCH]][COLUMN]))


def is_variance_centric(norm_type: str) -> bool:
    """Whether a norm only divides by a spread: those that Theorem 1 holds IBNorm against."""
    return norm_type in SPECS and SPECS[norm_type].standardizes


def is_ibnorm(norm_type: str) -> bool:
    """Whether a norm compresses as IBNorm does."""
    try:
        return get_spec(norm_type).family == "ibnorm"
    except ValueError:
        return False
