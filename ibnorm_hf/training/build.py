# SPDX-License-Identifier: Apache-2.0
"""Recipe -> config -> model, with every size and flag checked by name before anything is built."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

# Registers our model types with the Auto classes; the `ibnorm-hf` program does not do so by itself.
from .. import registration  # noqa: F401
from .errors import UserError
from .recipe import Recipe, did_you_mean

_NORM_FLAGS = ("norm_type", "norm_lambda", "norm_order", "norm_affine", "norm_bias")
_MOST, _MOST_LAYERS = 10_000_000, 10_000  # larger is a slip of the keyboard, and would hang
# Set from the tokenizer, so a recipe that gave them would be contradicted in silence.
_FROM_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")


def build_config(recipe: Recipe, tokenizer: Any = None) -> PreTrainedConfig:
    """The model's config: the model type's defaults, the recipe's sizes and norm flags, the tokenizer's tokens.

    Raises:
        UserError: the model type, a size or a flag is unknown or outside its domain.
    """
    kind = recipe.model.model_type
    defaults = _defaults(kind)
    values = _checked_sizes(recipe, defaults)
    for flag in _NORM_FLAGS:
        value = getattr(recipe.model, flag)
        if value is None:
            continue
        if flag not in defaults:
            raise UserError(f"key {flag}: model type '{kind}' keeps its own norms; use model_type ibnorm_{kind}")
        values[flag] = value
    if tokenizer is not None:
        values |= {name: getattr(tokenizer, name) for name in _FROM_TOKENIZER}
    else:
        # Defaults such as GPT-2's 50256 may lie beyond a smaller vocabulary.
        values |= dict.fromkeys(_FROM_TOKENIZER, 0)
    try:
        config = AutoConfig.for_model(kind, **values)
    except Exception as error:  # strict configs raise kinds of their own; each wraps one sentence
        raise UserError(f"recipe: {' '.join(str(error.__cause__ or error).split())}") from None
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.data.block_size > longest:
        raise UserError(
            f"block_size {recipe.data.block_size} exceeds the model's {longest} positions; "
            "raise model.max_position_embeddings (GPT-2: model.n_positions)"
        )
    return config


def _defaults(kind: str) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        raise UserError(f"key model_type: unknown model type '{kind}'{did_you_mean(kind, CONFIG_MAPPING.keys())}")
    config = CONFIG_MAPPING[kind]()
    names = set(config.to_dict()) | set(getattr(type(config), "attribute_map", {}))
    return {name: getattr(config, name, None) for name in names}


def _checked_sizes(recipe: Recipe, defaults: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for name, value in recipe.sizes.items():
        if name in _NORM_FLAGS:
            raise UserError(f"key model.{name}: the norm flags stand outside `model:`, write {name}")
        if name in _FROM_TOKENIZER:
            raise UserError(f"key model.{name}: it follows from the tokenizer; leave it out")
        if name not in defaults:
            raise UserError(f"unknown key 'model.{name}'{did_you_mean(name, defaults)}")
        default = defaults[name]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)  # YAML writes 0 where the config wants 0.0
        is_count = isinstance(default, int) and not isinstance(default, bool) and default > 0
        if is_count and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"key model.{name}: '{value}' is not a whole number of at least 1")
        most = _MOST_LAYERS if "layer" in name else _MOST
        if (is_count or default is None) and isinstance(value, int) and abs(value) > most:
            raise UserError(f"key model.{name}: {_short(value)} is beyond anything that could be built ({most:,})")
        values[name] = value
    return values


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**15 else f"a number of {int(value.bit_length() * 0.30103) + 1} digits"


def build_model(config: PreTrainedConfig, *, device: str = "cpu") -> PreTrainedModel:
    """A freshly initialised model in fp32; ``device="meta"`` allocates nothing.

    Raises:
        UserError: the sizes do not fit together.
    """
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, RuntimeError, KeyError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the model cannot be built from these sizes: {reason}") from None


def vocab_size(recipe: Recipe) -> int:
    """Rows of the embedding."""
    return int(build_config(recipe).vocab_size)
