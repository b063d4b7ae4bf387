# SPDX-License-Identifier: Apache-2.0
"""The private parts of transformers that the models rely on, in one place; seen in 5.17 to 5.24.

Renamed in transformers, both would be passed over in silence: norms that no checkpoint provides would start as garbage.
"""

from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers import initialization as init

SEEN = "5.17 to 5.24"
HOOK, DONE, NAME = "_initialize_weights", "_is_hf_initialized", "_name_or_path"


def require_initialization() -> None:
    """Raise ImportError unless transformers initializes what a checkpoint lacks in the way that ours joins."""
    if not hasattr(PreTrainedModel, HOOK):
        raise _gone(f"PreTrainedModel.{HOOK}")
    if DONE not in init.ones_.__code__.co_consts:
        raise _gone(f"mark {DONE} in initialization.ones_")


def _gone(name: str) -> ImportError:
    return ImportError(
        f"the installed transformers {transformers.__version__} has no {name}, which this version of ibnorm_hf relies "
        f"on; install transformers {SEEN}"
    )


def is_initialized(thing: Any) -> bool:
    """Whether transformers takes a module or parameter for loaded, or initialized."""
    return bool(getattr(thing, DONE, False))


def mark_initialized(thing: Any) -> None:
    """Have transformers leave a module or parameter as it is."""
    setattr(thing, DONE, True)


def name_of(config: Any) -> Any:
    """Where a config was loaded from, as it keeps it; ImportError where it keeps it under another name."""
    if NAME not in vars(config):
        raise _gone(f"PreTrainedConfig.{NAME}")
    return vars(config)[NAME]


def set_name(config: Any, name: Any) -> None:
    """Have a config say that it was loaded from elsewhere; None stays None, as its public property would not."""
    name_of(config)
    setattr(config, NAME, name)
