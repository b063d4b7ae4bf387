# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen3 with the norms of ``IBNormQwen3Config``; parameter names are vanilla's, so checkpoints move by name."""

from huggingface_hub.dataclasses import strict
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Qwen3Model,
)

from .configuration_ibnorm import NormFlags
from .mixin import IBNormHeadMixin, IBNormMixin


@strict
class IBNormQwen3Config(NormFlags, Qwen3Config):
    """``Qwen3Config`` with the norm flags of ``NormFlags``; eps is ``rms_norm_eps``."""

    model_type = "ibnorm_qwen3"
    norm_bias: bool = False


class IBNormQwen3Model(IBNormMixin, Qwen3Model):
    config_class = IBNormQwen3Config


class IBNormQwen3ForCausalLM(IBNormMixin, Qwen3ForCausalLM):
    config_class = IBNormQwen3Config


class _IBNormQwen3Head(IBNormHeadMixin):
    base_class = IBNormQwen3Model


class IBNormQwen3ForSequenceClassification(_IBNormQwen3Head, Qwen3ForSequenceClassification):
    config_class = IBNormQwen3Config


class IBNormQwen3ForTokenClassification(_IBNormQwen3Head, Qwen3ForTokenClassification):
    config_class = IBNormQwen3Config


class IBNormQwen3ForQuestionAnswering(_IBNormQwen3Head, Qwen3ForQuestionAnswering):
    config_class = IBNormQwen3Config


__all__ = [
    "IBNormQwen3Config",
    "IBNormQwen3ForCausalLM",
    "IBNormQwen3ForQuestionAnswering",
    "IBNormQwen3ForSequenceClassification",
    "IBNormQwen3ForTokenClassification",
    "IBNormQwen3Model",
]
