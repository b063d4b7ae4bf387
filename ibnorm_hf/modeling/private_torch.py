# SPDX-License-Identifier: Apache-2.0
"""The private parts of torch that the norms rely on, in one place; seen in 2.9 to 2.13.

One that is gone is replaced by a function that says so when it is called: nothing is decided by guessing.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import nn

SEEN = "2.9 to 2.13"
# Of every module: hooks and what a hook's handle removes itself from.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_FUNCTIONS = {
    "transforms_are_active": "_C._are_functorch_transforms_active",
    "graph_task": "_C._current_graph_task_id",
    "dispatch_modes": "_C._len_torch_dispatch_stack",
    "is_functorch_wrapped_tensor": "_C._functorch.is_functorch_wrapped_tensor",
    "is_legacy_batchedtensor": "_C._functorch.is_legacy_batchedtensor",
    "is_zerotensor": "Tensor._is_zerotensor",
    "register_decomposition": "_decomp.register_decomposition",
}


def part(path: str) -> Callable[..., Any]:
    """``torch.PATH`` itself; where it is gone, a function that raises ImportError with its name."""
    try:
        found: Callable[..., Any] = attrgetter(path)(torch)
        return found
    except AttributeError:
        return _absent(path)


def _absent(path: str) -> Callable[..., Any]:
    def gone(*args: Any, **kwargs: Any) -> Any:
        raise ImportError(
            f"the installed torch {torch.__version__} has no torch.{path}, which this version of ibnorm_hf relies on; "
            f"install torch {SEEN}"
        )

    return gone


transforms_are_active = part(_FUNCTIONS["transforms_are_active"])
graph_task = part(_FUNCTIONS["graph_task"])
dispatch_modes = part(_FUNCTIONS["dispatch_modes"])
is_functorch_wrapped_tensor = part(_FUNCTIONS["is_functorch_wrapped_tensor"])
is_legacy_batchedtensor = part(_FUNCTIONS["is_legacy_batchedtensor"])
is_zerotensor = part(_FUNCTIONS["is_zerotensor"])
register_decomposition = part(_FUNCTIONS["register_decomposition"])


def recording_types() -> tuple[type, ...]:
    """The tensors by which a compiler follows what is computed."""
    from torch._subclasses import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return FakeTensor, FunctionalTensor


def keep_in_inductor(operator: str) -> None:
    """Let inductor call an operator that has a decomposition, also where the variable ``CI`` is set."""
    try:  # imported late: it takes a second
        from torch._inductor.lowering import FALLBACK_ALLOW_LIST
    except ImportError:
        _absent("_inductor.lowering.FALLBACK_ALLOW_LIST")()
    FALLBACK_ALLOW_LIST.add(operator)


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules that a module holds, by name."""
    return _of(module, "_modules")


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """The very tables of hooks of a module."""
    return {name: _of(module, name) for name in HOOKS}


def copy_with(module: nn.Module, parameters: dict[str, Any]) -> nn.Module:
    """A shallow copy of a module with other parameters; those that are not given are None. It shares no table."""
    import copy

    trial = copy.copy(module)
    trial._parameters = {name: parameters.get(name) for name in _of(module, "_parameters")}  # type: ignore[misc]
    return trial


def _of(module: nn.Module, name: str) -> Any:
    try:
        return vars(module)[name]
    except KeyError:
        return _absent(f"nn.Module.{name}")()
