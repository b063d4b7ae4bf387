# SPDX-License-Identifier: Apache-2.0
"""The shape that PEFT gives a model, known by its structure: this file must load where peft is absent."""

import functools
import sys
from typing import Any

from torch import nn

from .private_torch import children_of

# A wrapper keeps the frozen module under the first name and the copies that adapters train in a dict of the second.
_WRAPPERS = {"original_module": "modules_to_save", "base_layer": "ln_tuning_layers"}


def unwrapped(model: Any) -> Any:
    """The model inside a ``PeftModel``, adapters and all; any other model itself."""
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        return model
    _require_names()
    return model.get_base_model()


@functools.cache
def _require_names() -> None:
    """Raise ImportError where PEFT, seen in 0.19 to 0.21, keeps its copies under other names than those above."""
    layers = (("peft.utils.other", "ModulesToSaveWrapper"), ("peft.tuners.ln_tuning.layer", "LNTuningLayer"))
    for known, (module, name) in zip(_WRAPPERS.values(), layers, strict=True):
        layer = getattr(sys.modules.get(module), name, None)
        if module in sys.modules and known not in getattr(layer, "adapter_layer_names", ()):
            raise ImportError(
                f"the installed peft keeps no {known} in {module}.{name}, which this version of ibnorm_hf relies on; "
                "install peft 0.19 to 0.21"
            )


def plain_path(model: nn.Module, path: str) -> str:
    """The path that a module of ``model`` has without PEFT's wrappers, the same for the original and its copies."""
    parts = []
    module: Any = model
    steps = iter(path.split(".") if path else ())
    for step in steps:
        children = children_of(module)
        module = children[step]
        if step in _WRAPPERS and _WRAPPERS[step] in children:
            continue
        original = next((k for k, v in _WRAPPERS.items() if v == step), None)
        if original in children:
            adapter = next(steps, None)  # the copies stand under the names of their adapters
            module = module if adapter is None else children_of(module)[adapter]
            continue
        parts.append(step)
    return ".".join(parts)
