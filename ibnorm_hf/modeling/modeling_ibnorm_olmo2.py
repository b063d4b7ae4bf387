# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""OLMo 2 with the norms of ``IBNormOlmo2Config``; parameter names are vanilla's, so checkpoints move by name."""

from huggingface_hub.dataclasses import strict
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo2Model,
)

from .configuration_ibnorm import NormFlags
from .mixin import IBNormMixin


@strict
class IBNormOlmo2Config(NormFlags, Olmo2Config):
    """``Olmo2Config`` with the norm flags of ``NormFlags``; eps is ``rms_norm_eps``."""

    model_type = "ibnorm_olmo2"
    norm_bias: bool = False


class IBNormOlmo2Model(IBNormMixin, Olmo2Model):
    config_class = IBNormOlmo2Config


class IBNormOlmo2ForCausalLM(IBNormMixin, Olmo2ForCausalLM):
    config_class = IBNormOlmo2Config


__all__ = [
    "IBNormOlmo2Config",
    "IBNormOlmo2ForCausalLM",
    "IBNormOlmo2Model",
]
