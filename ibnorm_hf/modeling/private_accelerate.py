# SPDX-License-Identifier: Apache-2.0
"""The private parts of accelerate that replacing norms relies on, in one place; seen in 1.10 to 1.15.

accelerate moves modules by a hook that it keeps on them, and wraps their forward. Neither is imported here: a model
without such hooks needs no accelerate.
"""

import functools
import sys
from typing import Any

from torch import nn

SEEN = "1.10 to 1.15"
_HOOK, _WRAPPED = "_hf_hook", "_old_forward"


@functools.cache
def _require(hooks: Any) -> None:
    """Hook a module and see under which names accelerate keeps what it needs.

    Raises:
        ImportError: under others than those known here.
    """
    trial = nn.Identity()
    hooks.add_hook_to_module(trial, hooks.ModelHook())
    gone = [name for name in (_HOOK, _WRAPPED) if not hasattr(trial, name)]
    if gone:
        raise ImportError(
            f"the installed accelerate keeps no {', '.join(gone)} on a module, which this version of ibnorm_hf relies "
            f"on; install accelerate {SEEN}"
        )


def has_hook(module: nn.Module) -> bool:
    """Whether accelerate watches this module."""
    hooks = sys.modules.get("accelerate.hooks")
    # Only a forward of the module's own can be one that accelerate wrapped.
    if hooks is not None and "forward" in vars(module):
        _require(hooks)
    return hasattr(module, _HOOK)


def carry_hook(old: nn.Module, new: nn.Module) -> None:
    """Put accelerate's hook of one module on another. RuntimeError where accelerate is not installed."""
    if not has_hook(old):
        return
    try:  # an import that is not tried would be demanded of whoever loads this file with a checkpoint
        from accelerate.hooks import add_hook_to_module
    except ImportError as error:
        raise RuntimeError("the model carries hooks of accelerate, which is not installed") from error
    add_hook_to_module(new, getattr(old, _HOOK))


def forward_below_hook(module: nn.Module, forward: Any) -> Any:
    """The forward that stood in a module before accelerate wrapped it; ``forward`` itself where others did."""
    inner = getattr(forward, "func", None)  # accelerate wraps the forward that stood there, and keeps it
    if getattr(inner, "__module__", None) != "accelerate.hooks":
        return forward
    return vars(module).get(_WRAPPED)
