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


class _IBNormLlamaHead(IBNormMixin):
    def __init__(self, config: IBNormLlamaConfig) -> None:
        # transformers' heads build their base model through AutoModel, which must know this very config class: code
        # that came with a checkpoint has a class of its own.
        AutoModel.register(type(config), IBNormLlamaModel, exist_ok=True)
        super().__init__(config)


class IBNormLlamaForSequenceClassification(_IBNormLlamaHead, LlamaForSequenceClassification):
    config_class = IBNormLlamaConfig


class IBNormLlamaForTokenClassification(_IBNormLlamaHead, LlamaForTokenClassification):
    config_class = IBNormLlamaConfig


class IBNormLlamaForQuestionAnswering(_IBNormLlamaHead, LlamaForQuestionAnswering):
    config_class = IBNormLlamaConfig


__all__ = [
    "IBNormLlamaForCausalLM",
    "IBNormLlamaForQuestionAnswering",
    "IBNormLlamaForSequenceClassification",
    "IBNormLlamaForTokenClassification",
    "IBNormLlamaModel",
]
