# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""BERT with the norms of ``IBNormBertConfig``, which stand behind attention and MLP; parameter names are vanilla's.

Its tokens see those that follow, so it is no causal language model unless its config says ``is_decoder``.
"""

from huggingface_hub.dataclasses import strict
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
)

from .configuration_ibnorm import NormFlags
from .mixin import IBNormMixin


@strict
class IBNormBertConfig(NormFlags, BertConfig):
    """``BertConfig`` with the norm flags of ``NormFlags``; eps is ``layer_norm_eps``."""

    model_type = "ibnorm_bert"


class IBNormBertModel(IBNormMixin, BertModel):
    config_class = IBNormBertConfig


class IBNormBertForPreTraining(IBNormMixin, BertForPreTraining):
    config_class = IBNormBertConfig


class IBNormBertLMHeadModel(IBNormMixin, BertLMHeadModel):
    config_class = IBNormBertConfig

    def _complete(self) -> None:
        # transformers finds the loss by class name, and this one's does not say it; its fallback breaks torch.compile.
        self.loss_type = "ForCausalLM"


class IBNormBertForMaskedLM(IBNormMixin, BertForMaskedLM):
    config_class = IBNormBertConfig


class IBNormBertForNextSentencePrediction(IBNormMixin, BertForNextSentencePrediction):
    config_class = IBNormBertConfig


class IBNormBertForSequenceClassification(IBNormMixin, BertForSequenceClassification):
    config_class = IBNormBertConfig


class IBNormBertForMultipleChoice(IBNormMixin, BertForMultipleChoice):
    config_class = IBNormBertConfig


class IBNormBertForTokenClassification(IBNormMixin, BertForTokenClassification):
    config_class = IBNormBertConfig


class IBNormBertForQuestionAnswering(IBNormMixin, BertForQuestionAnswering):
    config_class = IBNormBertConfig


__all__ = [
    "IBNormBertConfig",
    "IBNormBertForMaskedLM",
    "IBNormBertForMultipleChoice",
    "IBNormBertForNextSentencePrediction",
    "IBNormBertForPreTraining",
    "IBNormBertForQuestionAnswering",
    "IBNormBertForSequenceClassification",
    "IBNormBertForTokenClassification",
    "IBNormBertLMHeadModel",
    "IBNormBertModel",
]
