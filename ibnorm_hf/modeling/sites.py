# SPDX-License-Identifier: Apache-2.0
"""Where a norm stands in its model: in front of attention, of the MLP, at the end; in which layer; in whose model."""

import re
from dataclasses import dataclass, replace
from typing import Any

from .wrappers import unwrapped

# Last parts of paths. Elsewhere in a layer (``q_norm``, the norms of a convolution) a norm is of no kind.
_ATTENTION = {"input_layernorm", "ln_1", "layernorm_before", "pre_attention_layernorm"}
_MLP = {"post_attention_layernorm", "ln_2", "layernorm_after", "pre_feedforward_layernorm", "pre_mlp_layernorm"}


@dataclass(frozen=True)
class Site:
    """Where a norm stands.

    Args:
        kind: ``attention`` or ``mlp`` for the norm in front of one, ``final`` for the one after the last layer, else
            ``other``.
        layer: the layer's number, from 1; 0 outside of layers.
        host: the model type of the host, without ``ibnorm_``; empty where it is not known.
        width: the number of features.
    """

    kind: str = "other"
    layer: int = 0
    host: str = ""
    width: int = 0


def site_of(path: str, siblings: frozenset[str] = frozenset(), *, host: str = "", width: int = 0) -> Site:
    """The site of the norm at ``path``; ``siblings`` are the names of the other modules of its parent.

    ``post_attention_layernorm`` stands in front of the MLP (LLaMA), unless the MLP has a norm of its own beside it
    (Gemma 2 and 3, OLMo 2): then it acts on attention's output and is of no kind.
    """
    name = path.rpartition(".")[2]
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.)", path)
    if not numbers:
        final = "norm" in name.lower() or name == "ln_f"
        return Site("final" if final and "embedding" not in path else "other", 0, host, width)
    kind = "attention" if name in _ATTENTION else "mlp" if name in _MLP else "other"
    if name == "post_attention_layernorm" and siblings & {"pre_feedforward_layernorm", "post_feedforward_layernorm"}:
        kind = "other"
    return Site(kind, int(numbers[0]) + 1, host, width)


def site_in(model: Any, path: str, width: int = 0) -> Site:
    """The site of the norm at ``path`` of a model, with or without PEFT around it.

    A norm inside a head (BERT's, where it fills masks) is of no kind: without the head it is not there.
    """
    base = unwrapped(model)
    parent = base.get_submodule(path.rpartition(".")[0])
    config = getattr(base, "config", None)
    host = getattr(config, "norm_host", None) or str(getattr(config, "model_type", "") or "").removeprefix("ibnorm_")
    site = site_of(path, frozenset(name for name, _ in parent.named_children()), host=host, width=width)
    prefix = str(getattr(base, "base_model_prefix", ""))
    in_head = prefix and hasattr(base, prefix) and not path.startswith(f"{prefix}.")
    return replace(site, kind="other", layer=0) if in_head else site
