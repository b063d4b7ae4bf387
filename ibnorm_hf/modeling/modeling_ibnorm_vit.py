# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""ViT with the norms of ``IBNormViTConfig``; parameter names are vanilla's, so checkpoints move by name."""

from transformers import ViTForImageClassification, ViTModel

from .configuration_ibnorm import IBNormViTConfig
from .mixin import IBNormMixin


class IBNormViTModel(IBNormMixin, ViTModel):
    config_class = IBNormViTConfig

    # Spelled out, because transformers reads the signature to learn that images can be masked.
    def __init__(self, config: IBNormViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer, use_mask_token=use_mask_token)


class IBNormViTForImageClassification(IBNormMixin, ViTForImageClassification):
    config_class = IBNormViTConfig


__all__ = ["IBNormViTForImageClassification", "IBNormViTModel"]
