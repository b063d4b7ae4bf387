# SPDX-License-Identifier: Apache-2.0
"""The shape that PEFT gives a model, known by its structure: this file must load where peft is absent."""

from typing import Any

from torch import nn

# A wrapper keeps the frozen module under the first name and the copies that adapters train in a dict of the second.
_WRAPPERS = {"original_module": "modules_to_save", "base_layer": "ln_tuning_layers"}


def unwrapped(model: Any) -> Any:
    """The model inside a ``PeftModel``, adapters and all; any other model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def plain_path(model: nn.Module, path: str) -> str:
    """The path that a module of ``model`` has without PEFT's wrappers, the same for the original and its copies."""
    parts = []
    module: Any = model
    steps = iter(path.split(".") if path else ())
    for step in steps:
        children = module._modules
        module = children[step]
        if step in _WRAPPERS and _WRAPPERS[step] in children:
            continue
        original = next((k for k, v in _WRAPPERS.items() if v == step), None)
        if original in children:
            adapter = next(steps, None)  # the copies stand under the names of their adapters
            module = module if adapter is None else module._modules[adapter]
            continue
        parts.append(step)
    return ".".join(parts)
