# SPDX-License-Identifier: Apache-2.0
"""The guard: every norm of a model still runs the forward that it was built with."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .create import check_norm_type, norm_classes
from .private_accelerate import forward_below_hook, has_hook
from .recognize import iter_norms, norm_name
from .scope import chosen_norms, is_named

_OUR_FORWARD: dict[type[nn.Module], Any] = {cls: cls.forward for cls in norm_classes()}


def assert_norms(model: nn.Module, norm_type: str | None = None, *, exclude: Sequence[str] = ()) -> None:
    """Raise unless every norm of ``model`` still runs the forward it was built with.

    Patches that rebind a norm's forward (``use_liger_kernel``, a kernel hub) turn IBNorm into RMSNorm in silence;
    this names the module. ``norm_type``, where given or found in ``model.config``, must match as well, except
    at the paths, last parts of paths, or patterns, that ``exclude`` names. A config's own ``norm_scope`` and
    ``norm_exclude`` are heeded.

    Raises:
        RuntimeError: a patched forward, a norm of another type, or no norm at all.
    """
    config: Any = getattr(model, "config", None)
    if norm_type is None and hasattr(config, "norm_order"):  # MPT has a norm_type of its own
        norm_type = config.norm_type
    expected = None if norm_type is None else check_norm_type(norm_type, "batch")
    scope, left = getattr(config, "norm_scope", "all"), getattr(config, "norm_exclude", None) or ()
    swapped = {path for path, _ in chosen_norms(model, scope, left)}
    norms = [(path, module) for path, modules in iter_norms(model) for module in modules]
    for path, module in norms:
        if not _runs_its_own(module):
            raise RuntimeError(
                f"The forward of '{path}' ({type(module).__name__}) was replaced by other code; "
                "load the model again without kernel patches such as use_liger_kernel."
            )
        excluded = path not in swapped or any(is_named(path, name) for name in exclude)
        if expected is not None and not excluded and norm_name(module) != expected:
            raise RuntimeError(f"'{path}' is {norm_name(module) or type(module).__name__}, expected {expected}.")
    if not norms:
        raise RuntimeError(f"{type(model).__name__} has no norm to check.")


def _runs_its_own(module: nn.Module) -> bool:
    """Whether the forward is that of the module's class, and of the class as it was defined."""
    forward: Any = vars(module).get("forward")
    if forward is not None and has_hook(module):
        forward = forward_below_hook(module, forward)
    if forward is not None and getattr(forward, "__func__", None) is not type(module).forward:
        return False
    home: Any = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    if home in _OUR_FORWARD:
        return home.forward is _OUR_FORWARD[home]
    return (home.forward.__module__, home.forward.__qualname__) == (home.__module__, f"{home.__qualname__}.forward")
