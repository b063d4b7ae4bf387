# SPDX-License-Identifier: Apache-2.0
"""Importing this module makes the Auto classes of transformers know our model types, and touches no other type."""

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

from .modeling import configuration_ibnorm as configs
from .modeling import modeling_ibnorm_gpt2 as gpt2
from .modeling import modeling_ibnorm_llama as llama
from .modeling import modeling_ibnorm_resnet as resnet
from .modeling import modeling_ibnorm_vit as vit
from .modeling.stock_decay import share_decay_list

_MODELS: dict[Any, dict[Any, type]] = {
    configs.IBNormLlamaConfig: {
        AutoModel: llama.IBNormLlamaModel,
        AutoModelForCausalLM: llama.IBNormLlamaForCausalLM,
        AutoModelForSequenceClassification: llama.IBNormLlamaForSequenceClassification,
        AutoModelForTokenClassification: llama.IBNormLlamaForTokenClassification,
        AutoModelForQuestionAnswering: llama.IBNormLlamaForQuestionAnswering,
    },
    configs.IBNormGPT2Config: {
        AutoModel: gpt2.IBNormGPT2Model,
        AutoModelForCausalLM: gpt2.IBNormGPT2LMHeadModel,
        AutoModelForSequenceClassification: gpt2.IBNormGPT2ForSequenceClassification,
        AutoModelForTokenClassification: gpt2.IBNormGPT2ForTokenClassification,
        AutoModelForQuestionAnswering: gpt2.IBNormGPT2ForQuestionAnswering,
    },
    configs.IBNormViTConfig: {
        AutoModel: vit.IBNormViTModel,
        AutoModelForImageClassification: vit.IBNormViTForImageClassification,
    },
    configs.IBNormResNetConfig: {
        AutoModel: resnet.IBNormResNetModel,
        AutoModelForImageClassification: resnet.IBNormResNetForImageClassification,
        AutoBackbone: resnet.IBNormResNetBackbone,
    },
}

for _config, _classes in _MODELS.items():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto, _model in _classes.items():
        _auto.register(_config, _model, exist_ok=True)

share_decay_list()
