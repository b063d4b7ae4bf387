# SPDX-License-Identifier: Apache-2.0
"""Which parameters weight decay touches: decided by the class of their module, never by their name.

By name, `ln_1.weight` of GPT-2 would be decayed as soon as its class is not nn.LayerNorm, and two
normalizations would be trained under different rules. Here the weights of linear maps, convolutions
and embeddings decay; biases, everything inside a normalization, and bare parameters never do. The exceptions
are the parameters that a norm's publication decays, which its entry in the registry names (``decayed``):
`rmsnorm-1p`'s weight, which is a gain less 1, as in Qwen3-Next, and the maps of `gatednorm`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from ...modeling.create import spec_of

DECAYED = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)


@dataclass(frozen=True)
class DecayGroups:
    """Parameter names of the two groups, and their counts by module class."""

    decay: list[str]
    no_decay: list[str]
    decay_classes: dict[str, int]
    no_decay_classes: dict[str, int]


def decay_groups(model: nn.Module) -> DecayGroups:
    """Split the trainable parameters of a model; a tied parameter is listed once and decays if any owner does."""
    owners: dict[int, str] = {}
    decayed: set[int] = set()
    for module in model.modules():
        spec = spec_of(module)
        decays = spec.decayed if spec is not None else ()
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), f"{type(module).__name__}.{name}")
            if name in decays or (isinstance(module, DECAYED) and name == "weight"):
                decayed.add(id(parameter))
    parts: tuple[list[str], list[str]] = ([], [])
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = 0 if id(parameter) in decayed else 1
            parts[group].append(name)
            counts[group][owners[id(parameter)]] += parameter.numel()
    return DecayGroups(parts[0], parts[1], dict(counts[0]), dict(counts[1]))
