# SPDX-License-Identifier: Apache-2.0
"""Every family of hosts, asked of the registration, at sizes small enough for a test."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForMaskedLM

from ibnorm_hf import registration
from ibnorm_hf.modeling.recognize import family_of, iter_norms
from ibnorm_hf.training.keys.files import read_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
# A config takes what it has a field for.
SMALL = {
    # text
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "vocab_size": 99},
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "num_labels": 5,  # every config takes it
    # images
    **{"image_size": 16, "patch_size": 8},
    **{"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
}


def labels(head: Any) -> dict[str, int]:
    """The size of a head, a class, that is not for ``num_labels`` classes: of an answer, two ends are asked."""
    return {"num_labels": 2} if head.__name__.endswith("ForQuestionAnswering") else {}


class Host:
    """A family: its two config classes and the Auto classes of its heads. ``name`` is the vanilla model type."""

    def __init__(self, config: Any, heads: dict[Any, type]) -> None:
        self.config, self.heads = config, heads
        self.model_type: str = config.model_type
        self.name = self.model_type.removeprefix("ibnorm_")
        self.vanilla: Any = type(AutoConfig.for_model(self.name))

    def sizes(self, **others: Any) -> dict[str, Any]:
        """Small values of the config's fields; ``others`` are taken in place of them, or left out where no field is."""
        fields = {field.name for field in dataclasses.fields(self.vanilla)}
        return {k: v for k, v in {**SMALL, **others}.items() if k in fields or k == "num_labels"}

    def __str__(self) -> str:
        return self.name

    @cached_property
    def norm(self) -> str:
        """The norm that the host has of its own, recognized by what it computes."""
        model = next(iter(self.heads)).from_config(self.vanilla(**self.sizes()))
        (name,) = {family_of(module) for _, modules in iter_norms(model) for module in modules}
        return str(name)

    @property
    def language(self) -> Any:
        """The Auto class of the head that fills masks, or else of the one that predicts the next token."""
        return AutoModelForMaskedLM if AutoModelForMaskedLM in self.heads else AutoModelForCausalLM

    @property
    def area(self) -> str:
        return str(self.config.norm_area)


HOSTS = {host.name: host for host in (Host(*entry) for entry in registration._MODELS.items())}
TEXT = {name: host for name, host in HOSTS.items() if AutoModelForCausalLM in host.heads}
CAUSAL = {name: host for name, host in TEXT.items() if host.language is AutoModelForCausalLM}
IMAGES = {name: host for name, host in HOSTS.items() if AutoModelForImageClassification in host.heads}


def recipes(hosts: dict[str, Host]) -> list[str]:
    """The shipped recipes that pretrain one of these hosts, as ``llama/tiny``."""
    types = {host.model_type for host in hosts.values()}
    folders = {name.removeprefix("ibnorm_") for name in types}  # recipes/base holds what others extend
    return sorted(
        path.relative_to(RECIPES).with_suffix("").as_posix()
        for path in RECIPES.glob("*/*.yaml")
        if path.parent.name in folders and read_recipe(path)[0].get("model_type") in types
    )


def shake(model: nn.Module) -> nn.Module:
    """Weights and running statistics of the norms away from their initial values; eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, modules in iter_norms(model):
            for module in modules:
                for t in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
                    t.add_(torch.rand(t.shape, generator=generator) / 2)
    return model.eval()
