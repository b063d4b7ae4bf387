# SPDX-License-Identifier: Apache-2.0
"""The main job under FSDP2 on CPU: `torchrun --nproc_per_node 2 fsdp_on_cpu.py RECIPE --key value ...`

accelerate shards a model only where it finds accelerators, and copies it otherwise. Telling it that its CPU
processes are such makes everything after that its real FSDP2 path, over gloo.
"""

import os
import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

_init = PartialState.__init__


def _as_accelerators(self: PartialState, *words: Any, **keys: Any) -> None:
    _init(self, *words, **keys)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    os.environ.update(
        ACCELERATE_USE_CPU="true",
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_RESHARD_AFTER_FORWARD="true",
    )
    PartialState.__init__ = _as_accelerators  # type: ignore[method-assign]

    from ibnorm_hf.cli import main

    sys.exit(main(["pretrain", *sys.argv[1:]]))
