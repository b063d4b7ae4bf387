# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaMA with the norms of ``IBNormLlamaConfig``; parameter names are vanilla's, so checkpoints move by name."""

from transformers import (
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from .configuration_ibnorm import IBNormLlamaConfig
from .mixin import IBNormHeadMixin, IBNormMixin


class IBNormLlamaModel(IBNormMixin, LlamaModel):
    config_class = IBNormLlamaConfig


class IBNormLlamaForCausalLM(IBNormMixin, LlamaForCausalLM):
    config_class = IBNormLlamaConfig


class _IBNormLlamaHead(IBNormHeadMixin):
    base_class = IBNormLlamaModel


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
