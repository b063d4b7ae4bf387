# SPDX-License-Identifier: Apache-2.0
"""The lambda of a model that is there already: set in its norms and in its config."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .batch_norms import IBBatchNorm2d
from .functional import check_lambda
from .norms import IBNorm
from .recognize import iter_norms
from .wrappers import unwrapped


def set_norm_lambda(model: nn.Module, norm_lambda: float | Sequence[float]) -> None:
    """Give the IBNorms of ``model`` another lambda, in the modules and, where it has the field, in ``model.config``.

    Args:
        model: a model with IBNorms, or one around it of PEFT, whose copies of a norm are set alike.
        norm_lambda: one number, or one an IBNorm in module order.

    Raises:
        ValueError: a number outside its domain, a list of the wrong length, or no IBNorm; nothing is changed then.
    """
    norms = [modules for _, modules in iter_norms(model) if isinstance(modules[0], IBNorm | IBBatchNorm2d)]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no IBNorm whose lambda could be set.")
    each = norm_lambda if isinstance(norm_lambda, Sequence) else [norm_lambda] * len(norms)
    lambdas = [check_lambda(value) for value in each]
    if len(lambdas) != len(norms):
        raise ValueError(f"norm_lambda lists {len(lambdas)} values, but the model has {len(norms)} IBNorms.")
    for modules, value in zip(norms, lambdas, strict=True):
        for module in modules:
            module.norm_lambda = value  # type: ignore[assignment]
    config: Any = getattr(unwrapped(model), "config", None)
    if hasattr(config, "norm_lambda"):
        config.norm_lambda = lambdas[0] if len(set(lambdas)) == 1 else lambdas
