# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2 with the norms of ``IBNormQwen2Config``; parameter names are vanilla's, so checkpoints move by name."""

from huggingface_hub.dataclasses import strict
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

from .configuration_ibnorm import NormFlags
from .mixin import IBNormHeadMixin, IBNormMixin


@strict
class IBNormQwen2Config(NormFlags, Qwen2Config):
    """``Qwen2Config`` with the norm flags of ``NormFlags``; eps is ``rms_norm_eps``."""

    model_type = "ibnorm_qwen2"
    norm_bias: bool = False


class IBNormQwen2Model(IBNormMixin, Qwen2Model):
    config_class = IBNormQwen2Config


class IBNormQwen2ForCausalLM(IBNormMixin, Qwen2ForCausalLM):
    config_class = IBNormQwen2Config


class _IBNormQwen2Head(IBNormHeadMixin):
    base_class = IBNormQwen2Model


class IBNormQwen2ForSequenceClassification(_IBNormQwen2Head, Qwen2ForSequenceClassification):
    config_class = IBNormQwen2Config


class IBNormQwen2ForTokenClassification(_IBNormQwen2Head, Qwen2ForTokenClassification):
    config_class = IBNormQwen2Config


class IBNormQwen2ForQuestionAnswering(_IBNormQwen2Head, Qwen2ForQuestionAnswering):
    config_class = IBNormQwen2Config


__all__ = [
    "IBNormQwen2Config",
    "IBNormQwen2ForCausalLM",
    "IBNormQwen2ForQuestionAnswering",
    "IBNormQwen2ForSequenceClassification",
    "IBNormQwen2ForTokenClassification",
    "IBNormQwen2Model",
]
