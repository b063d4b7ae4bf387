# SPDX-License-Identifier: Apache-2.0
"""A run folder opened again: its model as it was before the first step, and the images it was validated on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from ..common.run import CONFIG, MODEL
from ..pretrained import load_tokenizer
from .image_task import ImageTask
from .keys.image_arguments import ImageArguments
from .keys.recipe import Recipe, load_recipe
from .model.build import build_config, build_trained_model
from .model.image_build import build_image_config, build_image_model
from .model.trained_part import take_trained_part


def initial_model(folder: str | Path) -> Any:
    """The model of a run before its first step: rebuilt from its config.yaml by the seed, as the job builds it.

    No file holds these weights. They are drawn again, which gives the very same ones under the same versions of torch
    and transformers on the same kind of device; with ``pretrained``, it is that model with its norms swapped. A lambda
    that is annealed stands at its end. Random numbers of the caller are left as they were.

    Raises:
        UserError: the recipe, its data, or the pretrained weights cannot be read any more.
    """
    recipe = _recipe(folder)
    with torch.random.fork_rng():
        if isinstance(recipe.data, ImageArguments):
            task = ImageTask(recipe)
            facts, classes = task.facts, task.data.classes
            set_seed(recipe.run.seed)
            model = build_image_model(build_image_config(recipe, facts, classes))
            return take_trained_part(model, recipe.model)
        tokenizer = load_tokenizer(str(Path(folder) / MODEL))
        set_seed(recipe.run.seed)
        return build_trained_model(recipe, build_config(recipe, tokenizer))


def held_out_images(folder: str | Path) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """The validation images of a run, and what makes (N, C, H, W) of them the model's input.

    Raises:
        UserError: they cannot be loaded any more.
    """
    task = ImageTask(_recipe(folder))
    return task.data.validation, task.views.evaluate


def _recipe(folder: str | Path) -> Recipe:
    return load_recipe(str(Path(folder) / CONFIG), [])
