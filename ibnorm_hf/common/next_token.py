# SPDX-License-Identifier: Apache-2.0
"""Whether a model predicts the next token: one whose tokens see those that follow would read the answer."""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from .errors import UserError


def require_next_token(config: PreTrainedConfig, name: str) -> None:
    """Refuse BERT and its like, which have a class for causal language models, and are none unless they are decoders.

    Args:
        name: the model, as the sentence begins.

    Raises:
        UserError: the tokens of this model see those that follow.
    """
    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not decodes:
        raise UserError(
            f"{name} is a {config.model_type}, whose tokens see those that follow: it fills masks, and next tokens, "
            "the only objective here, would be read off; take a causal architecture, or one with is_decoder: true"
        )
