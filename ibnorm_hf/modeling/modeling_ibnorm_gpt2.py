# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""GPT-2 with the norms of ``IBNormGPT2Config``; parameter names are vanilla's, so checkpoints move by name."""

from transformers import (
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from .configuration_ibnorm import IBNormGPT2Config
from .mixin import IBNormMixin


class IBNormGPT2Model(IBNormMixin, GPT2Model):
    config_class = IBNormGPT2Config


class IBNormGPT2LMHeadModel(IBNormMixin, GPT2LMHeadModel):
    config_class = IBNormGPT2Config

    def _complete(self) -> None:
        # transformers finds the loss by class name, and this one's does not say it; its fallback breaks torch.compile.
        self.loss_type = "ForCausalLM"


class IBNormGPT2ForSequenceClassification(IBNormMixin, GPT2ForSequenceClassification):
    config_class = IBNormGPT2Config


class IBNormGPT2ForTokenClassification(IBNormMixin, GPT2ForTokenClassification):
    config_class = IBNormGPT2Config


class IBNormGPT2ForQuestionAnswering(IBNormMixin, GPT2ForQuestionAnswering):
    config_class = IBNormGPT2Config


__all__ = [
    "IBNormGPT2ForQuestionAnswering",
    "IBNormGPT2ForSequenceClassification",
    "IBNormGPT2ForTokenClassification",
    "IBNormGPT2LMHeadModel",
    "IBNormGPT2Model",
]
