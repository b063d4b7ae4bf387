# SPDX-License-Identifier: Apache-2.0
"""Token embeddings times a learned number, which DyT's authors put in front of LLaMA (arXiv:2503.10622)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init


class ScaledEmbedding(nn.Embedding):
    """``nn.Embedding`` times ``embed_scale``, (1,), that starts at the square root of the width."""

    embed_scale: nn.Parameter  # PEFT knows it by this name

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale

    def reset_scale(self) -> None:
        """Give the scale its start value, unless it was loaded."""
        init.constant_(self.embed_scale, self.embedding_dim**0.5)


def scale_embeddings(model: Any) -> None:
    """Make the input embeddings of a transformers model scaled ones, in place; their weight stays, ties too.

    Raises:
        ValueError: the model has no token embeddings.
    """
    embedding = model.get_input_embeddings()
    if isinstance(embedding, ScaledEmbedding):
        return
    if type(embedding) is not nn.Embedding:
        raise ValueError(f"norm_embedding_scale is for token embeddings, which {type(model).__name__} has not.")
    embedding.__class__ = ScaledEmbedding
    scale = torch.empty(1, device=embedding.weight.device, dtype=embedding.weight.dtype)
    embedding.register_parameter("embed_scale", nn.Parameter(scale))
    embedding.reset_scale()  # type: ignore[operator]
