# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 (text) with the norms of ``IBNormGemma3TextConfig``; parameter names are vanilla's, whose gain is 1 + w."""

from huggingface_hub.dataclasses import strict
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
)

from .configuration_ibnorm import NormFlags
from .mixin import IBNormHeadMixin, IBNormMixin


@strict
class IBNormGemma3TextConfig(NormFlags, Gemma3TextConfig):
    """``Gemma3TextConfig`` with the norm flags of ``NormFlags``; eps is ``rms_norm_eps``."""

    model_type = "ibnorm_gemma3_text"
    host_gain_offset = 1.0
    norm_bias: bool = False


class IBNormGemma3TextModel(IBNormMixin, Gemma3TextModel):
    config_class = IBNormGemma3TextConfig


class IBNormGemma3ForCausalLM(IBNormMixin, Gemma3ForCausalLM):
    config_class = IBNormGemma3TextConfig


class IBNormGemma3TextForSequenceClassification(IBNormHeadMixin, Gemma3TextForSequenceClassification):
    config_class = IBNormGemma3TextConfig
    base_class = IBNormGemma3TextModel


__all__ = [
    "IBNormGemma3ForCausalLM",
    "IBNormGemma3TextConfig",
    "IBNormGemma3TextForSequenceClassification",
    "IBNormGemma3TextModel",
]
