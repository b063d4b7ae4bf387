# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of sharded models (FSDP2) in the layout of one process, so that any number of processes loads them.

`model.safetensors` holds whole tensors, `optimizer.pt` is what AdamW's own ``state_dict`` would be: moments
under running numbers, in the order of its parameter groups. All functions here are collective: every process calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def put_in_pieces(model: Any) -> None:
    """Free whole weights that a forward pass without a backward pass left behind, a validation's.

    Where ``reshard_after_forward`` is false they would be saved as one process's parameters under no known name.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: Any) -> bool:
    """Whether every process holds only its part of the parameters."""
    return any(hasattr(p, "full_tensor") for p in model.parameters())


def full_optimizer_state(model: Any, optimizer: Any) -> dict[str, Any]:
    """The whole optimizer state on the main process, numbered as on one process; empty elsewhere."""
    inner = getattr(optimizer, "optimizer", optimizer)
    named: dict[str, Any] = get_optimizer_state_dict(model, inner, options=_FULL)
    if not named:
        return {}
    numbers: dict[str, int] = {}
    groups = []
    for group in named["param_groups"]:
        ids = [numbers.setdefault(name, len(numbers)) for name in group["params"]]
        groups.append({**group, "params": ids})
    return {"state": {numbers[name]: values for name, values in named["state"].items()}, "param_groups": groups}


def load_full_optimizer(model: Any, optimizer: Any, path: Path) -> None:
    """Spread an `optimizer.pt` over the processes."""
    inner = getattr(optimizer, "optimizer", optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    order = [names[id(p)] for group in inner.param_groups for p in group["params"]]
    saved = torch.load(path, map_location="cpu", weights_only=True)
    groups = [{**group, "params": [order[i] for i in group["params"]]} for group in saved["param_groups"]]
    state = {order[number]: values for number, values in saved["state"].items()}
    set_optimizer_state_dict(model, inner, {"state": state, "param_groups": groups}, options=_FULL)


def load_full_model(model: Any, path: Path) -> None:
    """Load whole tensors into a model, sharded or not; names and shapes must be the model's own.

    Raises:
        RuntimeError, ValueError: a tensor is missing, unexpected or of another shape.
    """
    weights: dict[str, Any] = load_file(path)
    # Of tied parameters, one name is saved. torch names what is unexpected or of another shape, not what is missing.
    owners = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    loaded = {owners[name] for name in weights if name in owners}
    missing = [name for name in model.state_dict() if name not in weights and owners.get(name) not in loaded]
    if missing:
        raise ValueError(f"{path.name} lacks {missing[:3]}")
    set_model_state_dict(model, weights, options=_FULL)
