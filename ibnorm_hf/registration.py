# SPDX-License-Identifier: Apache-2.0
"""Importing this module makes the Auto classes of transformers know our model types, and touches no other type."""

from importlib import import_module
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from . import _PUBLIC
from .modeling.stock_decay import share_decay_list

# Which Auto class builds a model is said by how its name ends.
_AUTO: dict[str, Any] = {
    "Model": AutoModel,
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForImageClassification": AutoModelForImageClassification,
    "Backbone": AutoBackbone,
}


_MODELS: dict[Any, dict[Any, type]] = {}


def _register(family: Any) -> None:
    for name in family.__all__:
        if name.endswith("Config"):
            continue
        model = getattr(family, name)
        config = model.config_class
        # The longest ending: ``LMHeadModel`` ends as ``Model`` does.
        auto = _AUTO[max(filter(name.endswith, _AUTO), key=len)]
        AutoConfig.register(config.model_type, config, exist_ok=True)
        auto.register(config, model, exist_ok=True)
        _MODELS.setdefault(config, {})[auto] = model


for _module in _PUBLIC:
    if _module.startswith("modeling.modeling_ibnorm_"):
        _register(import_module(f".{_module}", __package__))

share_decay_list()
