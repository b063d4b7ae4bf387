# SPDX-License-Identifier: Apache-2.0
"""Importing this module makes the Auto classes of transformers know our model types, and touches no other type."""

from contextlib import suppress
from importlib import import_module
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils import is_vision_available

from . import FAMILIES
from .modeling.image_processing_ibnorm import IBNormImageProcessor
from .modeling.refusals import share_refusals
from .modeling.stock_decay import share_decay_list

# Which Auto class builds a model is said by how its name ends: in ForTASK, or as here.
_AUTO = {"LMHeadModel": "AutoModelForCausalLM", "Backbone": "AutoBackbone", "Model": "AutoModel"}
_MODELS: dict[Any, dict[Any, type]] = {}


def _auto_class(name: str) -> Any:
    _, task, of = name.partition("For")
    # In the order of the table: ``LMHeadModel`` ends as ``Model`` does.
    return getattr(transformers, f"AutoModel{task}{of}" if task else _AUTO[next(filter(name.endswith, _AUTO))])


def _register(family: Any) -> None:
    for name in family.__all__:
        if name.endswith("Config"):
            continue
        model = getattr(family, name)
        config = model.config_class
        auto = _auto_class(name)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        auto.register(config, model, exist_ok=True)
        _MODELS.setdefault(config, {})[auto] = model
        if name.endswith("ForImageClassification") and is_vision_available():
            # It runs without torchvision, and is not another one beside it.
            processors: dict[str, type] = dict.fromkeys(("pil", "torchvision"), IBNormImageProcessor)
            with suppress(ImportError):  # early releases have no image processor at all without torchvision
                AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)


for _name in FAMILIES:
    _register(import_module(f".modeling.modeling_ibnorm_{_name}", __package__))

share_decay_list()
share_refusals()
