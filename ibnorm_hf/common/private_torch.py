# SPDX-License-Identifier: Apache-2.0
"""The private parts of torch that training relies on; those of the norms themselves travel with a checkpoint, and stand
in ``modeling/private_torch.py``.
"""

from __future__ import annotations

from typing import Any

from .private import Parts, missing

COMPILING = Parts(
    "torch",
    "2.9 to 2.13",
    ("torch._dynamo.config:recompile_limit", "torch._dynamo.config:accumulated_recompile_limit"),
)


def allow_recompiles(count: int) -> None:
    """Let a compiled model be compiled at least ``count`` times; torch gives up in silence otherwise."""
    COMPILING.require()
    import torch._dynamo.config as limits

    limits.recompile_limit = max(limits.recompile_limit, count)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, count)


def storage_of(tensor: Any) -> int:
    """What tells the memory behind a tensor from any other, on the meta device as well, where none has an address."""
    found = getattr(tensor.untyped_storage(), "_cdata", None)
    if found is None:
        raise missing("torch", ["torch:UntypedStorage._cdata"], COMPILING.seen)
    return int(found)
