# SPDX-License-Identifier: Apache-2.0
"""Recipe -> config -> model, with every size and flag checked by name before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

# Registers our model types with the Auto classes; the `ibnorm-hf` program does not do so by itself.
from ... import registration  # noqa: F401
from ...common.errors import UserError, did_you_mean
from ...common.next_token import require_next_token
from ...modeling.compression import get_compression, list_compressions
from ...modeling.configuration_ibnorm import NormFlags
from ...modeling.replace import replace_norms
from ...pretrained import as_registered, load_config, load_pretrained, registered_config
from ..keys.arguments import ModelArguments
from ..keys.recipe import Recipe
from ..keys.schedule import LambdaSchedule
from .trained_part import take_trained_part

_KEYS = {f.name for f in fields(ModelArguments)}
_NORM_FLAGS = tuple(f.name for f in fields(NormFlags) if f.name in _KEYS)
_MOST, _MOST_LAYERS = 10_000_000, 10_000  # larger is a slip of the keyboard, and would hang
# Set from the tokenizer, so a recipe that gave them would be contradicted in silence.
_FROM_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")


def build_config(recipe: Recipe, tokenizer: Any = None) -> PreTrainedConfig:
    """The model's config: the model type's defaults, the recipe's sizes and norm flags, the tokenizer's tokens.

    Raises:
        UserError: the model type, a size or a flag is unknown or outside its domain.
    """
    if recipe.model.pretrained is not None:
        return _checked_positions(_pretrained_config(recipe, recipe.model.pretrained), recipe)
    kind = recipe.model.model_type
    defaults = defaults_of(kind)
    values = checked_sizes(recipe, defaults)
    if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"key model_type: '{kind}' is no language model; to classify images give the key images")
    if not recipe.sizes:
        raise UserError(
            f"recipe {recipe.name}: key model is missing: the sizes of the architecture, e.g. "
            "`model: {hidden_size: 256}`; or `pretrained`, weights to start from"
        )
    values |= checked_flags(recipe, defaults)
    if tokenizer is not None:
        values |= {name: getattr(tokenizer, name) for name in _FROM_TOKENIZER}
    else:
        # Defaults such as GPT-2's 50256 may lie beyond a smaller vocabulary.
        values |= dict.fromkeys(_FROM_TOKENIZER, 0)
    config = config_of(lambda: AutoConfig.for_model(kind, **values))
    require_next_token(config, "key model_type: this")
    return _checked_positions(config, recipe)


def config_of(make: Callable[[], Any]) -> Any:
    """The config that ``make`` makes. Raises UserError where a value is outside its domain."""
    try:
        return make()
    except Exception as error:  # strict configs raise kinds of their own; each wraps one sentence
        raise UserError(f"recipe: {' '.join(str(error.__cause__ or error).split())}") from None


def _pretrained_config(recipe: Recipe, source: str) -> PreTrainedConfig:
    config = load_config(source)
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    stored = next(iter(config.architectures or []), None)
    if known is None or stored not in (None, known.__name__):
        raise UserError(
            f"{source} holds a {stored or config.model_type}, which is no causal language model to train on"
        )
    require_next_token(config, source)
    given = _given_flags(recipe)
    if not given:
        return config
    if "norm_type" not in given and not hasattr(config, "norm_type"):
        raise UserError(f"key {next(iter(given))}: {source} keeps its own norms; give norm_type to swap them")
    registered: Any = config_of(lambda: registered_config(config, **given))
    if registered is None:
        raise UserError(f"{source} is a {config.model_type}, which has no registered type to save other norms in")
    return registered


def _checked_positions(config: PreTrainedConfig, recipe: Recipe) -> PreTrainedConfig:
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.data.block_size > longest:
        advice = "raise model.max_position_embeddings (GPT-2: model.n_positions)"
        if recipe.model.pretrained is not None:
            advice = "lower block_size"
        raise UserError(f"block_size {recipe.data.block_size} exceeds the model's {longest} positions; {advice}")
    return config


def _given_flags(recipe: Recipe) -> dict[str, Any]:
    return {flag: value for flag in _NORM_FLAGS if (value := getattr(recipe.model, flag)) is not None}


def defaults_of(kind: str) -> dict[str, Any]:
    """The values of a model type's config. Raises UserError for an unknown type."""
    if kind not in CONFIG_MAPPING:
        raise UserError(f"key model_type: unknown model type '{kind}'{did_you_mean(kind, CONFIG_MAPPING.keys())}")
    config = CONFIG_MAPPING[kind]()
    names = set(config.to_dict()) | set(getattr(type(config), "attribute_map", {}))
    return {name: getattr(config, name, None) for name in names}


def checked_sizes(recipe: Recipe, defaults: dict[str, Any]) -> dict[str, Any]:
    """The recipe's sizes. Raises UserError for one that the config does not know, or could not hold."""
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


def checked_flags(recipe: Recipe, defaults: dict[str, Any]) -> dict[str, Any]:
    """The recipe's norm flags. Raises UserError where the model type has none."""
    given, kind = _given_flags(recipe), recipe.model.model_type
    if unknown := [flag for flag in given if flag not in defaults]:
        raise UserError(f"key {unknown[0]}: model type '{kind}' keeps its own norms; {_instead(kind)}")
    return given


def _instead(kind: str) -> str:
    """The model type to use for other norms in this architecture, if we have one."""
    if f"ibnorm_{kind}" in CONFIG_MAPPING:
        return f"use model_type ibnorm_{kind}"
    return f"there is no ibnorm_{kind}, so leave the norm flags out, or swap norms in code by ibnorm_hf.replace_norms"


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**15 else f"a number of {int(value.bit_length() * 0.30103) + 1} digits"


def build_model(config: PreTrainedConfig, *, device: str = "cpu") -> PreTrainedModel:
    """A freshly initialised model in fp32; ``device="meta"`` allocates nothing.

    Raises:
        UserError: the sizes do not fit together.
    """
    return fresh_model(AutoModelForCausalLM, config, device)


def fresh_model(auto: Any, config: PreTrainedConfig, device: str) -> Any:
    """As ``build_model``, by the Auto class of a head."""
    try:
        with torch.device(device):
            return auto.from_config(config, dtype=torch.float32)
    except (ValueError, RuntimeError, KeyError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the model cannot be built from these sizes: {reason}") from None


def build_trained_model(recipe: Recipe, config: PreTrainedConfig, *, device: str = "cpu") -> Any:
    """The model as training begins: fresh or pretrained, its norms as the config says, and frozen where asked.

    On ``device="meta"`` no weight is loaded.

    Raises:
        UserError: as ``build_model``; or the pretrained weights cannot be loaded, or do not fit the norms.
    """
    if recipe.model.pretrained is None or device == "meta":
        model = build_model(config, device=device)
    else:
        model = _pretrained_model(recipe.model.pretrained, config)
    if model.loss_type is None:
        # GPT-2's class name tells transformers no loss, and Trainer would take a block's first label for a target.
        model.loss_type = "ForCausalLM"
    return take_trained_part(model, recipe.model)


def _pretrained_model(source: str, config: PreTrainedConfig) -> PreTrainedModel:
    model = load_pretrained(source).model
    if not hasattr(config, "norm_type"):
        return model
    try:
        replace_norms(model, config.norm_type, **config.norm_options())
        registered = as_registered(model, config)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{source} does not take these norms: {' '.join(str(error).split())[:300]}") from None
    if registered is None:
        raise UserError(f"{source} holds a {type(model).__name__}, which has no registered class to train")
    return registered


def lambda_schedule(recipe: Recipe, config: PreTrainedConfig) -> tuple[LambdaSchedule, float | list[float]] | None:
    """The checked schedule of a recipe and the lambda it ends at; None where lambda is fixed.

    Raises:
        UserError: a key of it is wrong, the norm compresses nothing, or `end` and norm_lambda disagree.
    """
    if recipe.model.norm_lambda_schedule is None:
        return None
    schedule = LambdaSchedule.parse(recipe.model.norm_lambda_schedule)
    norm = getattr(config, "norm_type", None)
    if norm not in list_compressions():
        raise UserError(f"norm_lambda_schedule: {norm or 'the model'} compresses nothing; give norm_type ibnorm-l, say")
    given = recipe.model.norm_lambda  # that of a pretrained config may be where an earlier conversion has stopped
    if schedule.end is not None and given is not None and schedule.end != given:
        raise UserError(f"norm_lambda is {given} and norm_lambda_schedule.end {schedule.end}; give only one of them")
    if schedule.unit == "spread" and schedule.end is None and given is None and config.norm_lambda is not None:
        raise UserError(
            f"norm_lambda_schedule: give end, in spreads; the lambda of {recipe.model.pretrained} is absolute"
        )
    ends = (schedule.end, config.norm_lambda, get_compression(norm).default_lambda)
    return schedule, next(v for v in ends if v is not None)


def vocab_size(recipe: Recipe) -> int:
    """Rows of the embedding."""
    return int(build_config(recipe).get_text_config().vocab_size)
