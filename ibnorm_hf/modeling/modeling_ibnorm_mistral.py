# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Mistral with the norms of ``IBNormMistralConfig``; parameter names are vanilla's, so checkpoints move by name."""

from huggingface_hub.dataclasses import strict
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)

from .configuration_ibnorm import NormFlags
from .mixin import IBNormHeadMixin, IBNormMixin


@strict
class IBNormMistralConfig(NormFlags, MistralConfig):
    """``MistralConfig`` with the norm flags of ``NormFlags``; eps is ``rms_norm_eps``."""

    model_type = "ibnorm_mistral"
    norm_bias: bool = False


class IBNormMistralModel(IBNormMixin, MistralModel):
    config_class = IBNormMistralConfig


class IBNormMistralForCausalLM(IBNormMixin, MistralForCausalLM):
    config_class = IBNormMistralConfig


class _IBNormMistralHead(IBNormHeadMixin):
    base_class = IBNormMistralModel


class IBNormMistralForSequenceClassification(_IBNormMistralHead, MistralForSequenceClassification):
    config_class = IBNormMistralConfig


class IBNormMistralForTokenClassification(_IBNormMistralHead, MistralForTokenClassification):
    config_class = IBNormMistralConfig


class IBNormMistralForQuestionAnswering(_IBNormMistralHead, MistralForQuestionAnswering):
    config_class = IBNormMistralConfig


__all__ = [
    "IBNormMistralConfig",
    "IBNormMistralForCausalLM",
    "IBNormMistralForQuestionAnswering",
    "IBNormMistralForSequenceClassification",
    "IBNormMistralForTokenClassification",
    "IBNormMistralModel",
]
