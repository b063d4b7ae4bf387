# SPDX-License-Identifier: Apache-2.0
"""Token embeddings times a learned number, which DyT's authors put in front of LLaMA (arXiv:2503.10622)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init


class ScaledEmbedding(nn.Embedding):
    """``nn.Embedding`` whose output is multiplied by ``scale``, (1,), that starts at the square root of the width."""

    scale: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale

    def reset_scale(self) -> None:
        """Give the scale its start value, unless it was loaded."""
        init.constant_(self.scale, self.embedding_dim**0.5)


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
    weight = embedding.weight
    embedding.scale = nn.Parameter(torch.empty(1, device=weight.device, dtype=weight.dtype))  # type: ignore[assignment]
    embedding.reset_scale()  # type: ignore[operator]
