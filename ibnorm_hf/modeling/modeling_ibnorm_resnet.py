# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""ResNet with the norms of ``IBNormResNetConfig``; parameter names are vanilla's, so checkpoints move by name.

Running statistics do not: IBNorm keeps those of compressed activations (see ``IBBatchNorm2d``).
"""

from transformers import ResNetBackbone, ResNetForImageClassification, ResNetModel

from .configuration_ibnorm import IBNormResNetConfig
from .mixin import IBNormMixin


class IBNormResNetModel(IBNormMixin, ResNetModel):
    config_class = IBNormResNetConfig


class IBNormResNetForImageClassification(IBNormMixin, ResNetForImageClassification):
    config_class = IBNormResNetConfig


class IBNormResNetBackbone(IBNormMixin, ResNetBackbone):
    config_class = IBNormResNetConfig


__all__ = ["IBNormResNetBackbone", "IBNormResNetForImageClassification", "IBNormResNetModel"]
