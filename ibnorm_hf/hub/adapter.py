# SPDX-License-Identifier: Apache-2.0
"""A PEFT adapter becomes a model: it is merged into the base that its config names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from ..common.base import require_recorded_weights
from ..common.errors import UserError, one_line
from .probe import probe

_WEIGHTS = "adapter_model.safetensors"


def merge(base: Any, adapter: Path) -> tuple[Any, Tensor | None]:
    """The base model with the adapter's weights in it, in the base's class and dtype; ``base`` itself is changed.

    Beside it what the two computed before they were merged (``probe``). An embedding that is also the output matrix is
    untied where the adapter changes one of the two.

    Raises:
        UserError: the adapter does not fit this base, is damaged, or is of a kind that cannot be merged.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        model = PeftModel.from_pretrained(base, adapter)
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        with safe_open(adapter / _WEIGHTS, "pt") as weights:
            there = set(weights.keys())
        # PEFT loads what it finds and warns; half an adapter is another model.
        odd = (expected - there) | (there - expected - set(model.state_dict()))
        if odd:
            raise UserError(f"adapter {adapter} does not fit its base model: {min(odd)} is in only one of them")
        if not hasattr(model.base_model, "merge_and_unload"):
            kind = model.active_peft_config.peft_type
            raise UserError(f"adapter {adapter} ({getattr(kind, 'value', kind)}) cannot be merged into its base model")
        require_recorded_weights(model, adapter)
        wanted = probe(model.get_base_model())
        _untie(model.get_base_model())
        return model.merge_and_unload(safe_merge=True), wanted
    except UserError:
        raise
    except Exception as error:
        # PEFT raises whatever its parts raise; for the user it is one thing: this adapter does not load.
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"adapter {adapter} cannot be loaded: {reason}") from None


def _untie(model: Any) -> None:
    """Give the output matrix values of its own where LoRA changes it or the embedding, which would change both."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if any(end is None for end in ends) or not any(hasattr(end, "base_layer") for end in ends):
        return
    inner = [getattr(end, "base_layer", end) for end in ends]
    if inner[0].weight is inner[1].weight:
        inner[1].weight = nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
