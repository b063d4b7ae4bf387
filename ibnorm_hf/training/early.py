# SPDX-License-Identifier: Apache-2.0
"""What only Trainer would notice, after the data has been packed: trackers, optimizer, schedule; tried beforehand."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from ..common.errors import UserError, one_line
from .keys.recipe import Recipe

# Where the package of a tracker bears another name.
_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit"}
_WITHOUT = ("kubeflow",)  # needs none


def try_trainer_parts(recipe: Recipe) -> None:
    """Make the recipe's trackers, optimizer and schedule for a model of one weight, and drop them.

    Raises:
        UserError: a package is missing, or values do not go together; the sentence names the key.
    """
    run = recipe.run

    for name in list(run.report_to or ()):
        _try("report_to", name, lambda name=name: _tracker(name))
    optimizer = _try("optim", getattr(run.optim, "value", run.optim), lambda: _optimizer(run))
    name = getattr(run.lr_scheduler_type, "value", run.lr_scheduler_type)
    _try(
        "lr_scheduler_type",
        f"{name} with lr_scheduler_kwargs {run.lr_scheduler_kwargs}",
        lambda: _schedule(run, optimizer),
    )


def _tracker(name: str) -> None:
    get_reporting_integration_callbacks([name])  # refuses unknown names
    # Made without its package, a tracker complains once more when it is thrown away.
    if name not in _WITHOUT and importlib.util.find_spec(_PACKAGES.get(name, name)) is None:
        raise ImportError(f"package {_PACKAGES.get(name, name)} is not installed")


def _optimizer(run: Any) -> torch.optim.Optimizer:
    model: Any = torch.nn.Linear(1, 1)
    kind, values = Trainer.get_optimizer_cls_and_kwargs(run, model)
    return kind(model.parameters(), **values)


def _schedule(run: Any, optimizer: torch.optim.Optimizer) -> Any:
    return get_scheduler(
        run.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=run.get_warmup_steps(run.max_steps),
        num_training_steps=run.max_steps,
        scheduler_specific_kwargs=run.lr_scheduler_kwargs,
    )


def _try(key: str, value: Any, make: Any) -> Any:
    try:
        return make()
    except Exception as error:  # each library raises kinds of its own
        raise UserError(f"key {key}: {value} cannot be used: {one_line(error)}") from None
