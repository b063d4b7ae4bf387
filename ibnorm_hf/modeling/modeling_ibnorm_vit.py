# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""ViT with the norms of ``IBNormViTConfig``; parameter names are vanilla's, so checkpoints move by name."""

from transformers import ViTForImageClassification, ViTModel, conversion_mapping

from .configuration_ibnorm import IBNormViTConfig
from .mixin import IBNormMixin


class IBNormViTModel(IBNormMixin, ViTModel):
    config_class = IBNormViTConfig

    # Spelled out, because transformers reads the signature to learn that images can be masked.
    def __init__(self, config: IBNormViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer, use_mask_token=use_mask_token)

    def _complete(self) -> None:
        _take_over_key_names(type(self).__name__)


class IBNormViTForImageClassification(IBNormMixin, ViTForImageClassification):
    config_class = IBNormViTConfig


def _take_over_key_names(name: str) -> None:
    # ViT checkpoints are stored under older names; transformers translates them for classes that it knows by name.
    # The inner ViTModel of a head is one. Done here and not at import, which it would slow by a fifth of a second.
    if name not in conversion_mapping.USER_REGISTERED_MAPPINGS:
        mapping = conversion_mapping.get_checkpoint_conversion_mapping("ViTModel")
        if mapping is not None:
            conversion_mapping.register_checkpoint_conversion_mapping(name, mapping, overwrite=True)


__all__ = ["IBNormViTForImageClassification", "IBNormViTModel"]
