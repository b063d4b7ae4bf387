# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaMA with the norms of ``IBNormLlamaConfig``; parameter names are vanilla's, so checkpoints move by name."""

from transformers import (
    AutoModel,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from .configuration_ibnorm import IBNormLlamaConfig
from .mixin import IBNormMixin


class IBNormLlamaModel(IBNormMixin, LlamaModel):
    config_class = IBNormLlamaConfig


class IBNormLlamaForCausalLM(IBNormMixin, LlamaForCausalLM):
    config_class = IBNormLlamaConfig


class IBNormLlamaForSequenceClassification(IBNormMixin, LlamaForSequenceClassification):
    config_class = IBNormLlamaConfig


class IBNormLlamaForTokenClassification(IBNormMixin, LlamaForTokenClassification):
    config_class = IBNormLlamaConfig


class IBNormLlamaForQuestionAnswering(IBNormMixin, LlamaForQuestionAnswering):
    config_class = IBNormLlamaConfig


# transformers' classification heads build their base model through AutoModel, so it must know this config wherever
# this file is loaded, from a checkpoint's folder too.
AutoModel.register(IBNormLlamaConfig, IBNormLlamaModel, exist_ok=True)

__all__ = [
    "IBNormLlamaForCausalLM",
    "IBNormLlamaForQuestionAnswering",
    "IBNormLlamaForSequenceClassification",
    "IBNormLlamaForTokenClassification",
    "IBNormLlamaModel",
]
