# SPDX-License-Identifier: Apache-2.0
"""A stock Trainer decays our norms over tokens exactly where it decays LayerNorm: nowhere."""

import functools
import sys
from typing import Any

from torch import nn
from transformers import pytorch_utils, trainer_pt_utils

from .norms import TokenNorm


def share_decay_list() -> None:
    """Enter our norms beside ``nn.LayerNorm`` in the lists by which transformers exempts from weight decay.

    Trainer exempts ``nn.LayerNorm`` by class, and others by words in names, which GPT-2's ``ln_1`` does not contain.
    A model without our norms is treated as before.
    """
    if TokenNorm in pytorch_utils.ALL_LAYERNORM_LAYERS:
        return
    pytorch_utils.ALL_LAYERNORM_LAYERS.append(TokenNorm)  # type: ignore[arg-type] # other people's trainers read it; Trainer itself does not
    original = trainer_pt_utils.get_parameter_names

    @functools.wraps(original)
    def get_parameter_names(model: Any, forbidden_layer_types: Any, *args: Any, **kwargs: Any) -> list[str]:
        types = list(forbidden_layer_types)
        if nn.LayerNorm in types and TokenNorm not in types:
            types.append(TokenNorm)
        return original(model, types, *args, **kwargs)

    for name in ("transformers.trainer_pt_utils", "transformers.trainer"):
        module: Any = sys.modules.get(name)
        if module is not None:
            module.get_parameter_names = get_parameter_names
