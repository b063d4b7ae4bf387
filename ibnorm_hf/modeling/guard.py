# SPDX-License-Identifier: Apache-2.0
"""The guard: every norm of a model still runs the forward that it was built with."""

from typing import Any

from torch import nn

from .create import check_norm_type, norm_classes
from .recognize import iter_norms, norm_name

_OUR_FORWARD: dict[type[nn.Module], Any] = {cls: cls.forward for cls in norm_classes()}


def assert_norms(model: nn.Module, norm_type: str | None = None) -> None:
    """Raise unless every norm of ``model`` still runs the forward it was built with.

    Patches that rebind a norm's forward (``use_liger_kernel``, a kernel hub) turn IBNorm into RMSNorm in silence;
    this names the module. ``norm_type``, where given or found in ``model.config``, must match as well.

    Raises:
        RuntimeError: a patched forward, a norm of another type, or no norm at all.
    """
    norm_type = norm_type or getattr(getattr(model, "config", None), "norm_type", None)
    expected = None if norm_type is None else check_norm_type(norm_type, "batch")
    norms = [(path, module) for path, modules in iter_norms(model) for module in modules]
    for path, module in norms:
        home = next((cls for cls in type(module).__mro__ if cls in _OUR_FORWARD), None)
        rebound = "forward" in vars(module) and not hasattr(module, "_hf_hook")
        if rebound or (home is not None and type(module).forward is not _OUR_FORWARD[home]):
            raise RuntimeError(
                f"The forward of '{path}' ({type(module).__name__}) was replaced by other code; "
                "load the model again without kernel patches such as use_liger_kernel."
            )
        if expected is not None and norm_name(module) != expected:
            raise RuntimeError(f"'{path}' is {norm_name(module) or type(module).__name__}, expected {expected}.")
    if not norms:
        raise RuntimeError(f"{type(model).__name__} has no norm to check.")
