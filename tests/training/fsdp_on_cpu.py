# SPDX-License-Identifier: Apache-2.0
"""The main job under FSDP2 on CPU: `torchrun --nproc_per_node 2 fsdp_on_cpu.py LAUNCH RECIPE --key value ...`

accelerate shards a model only where it finds accelerators, and copies it otherwise. Telling it that its CPU
processes are such makes everything after that its real FSDP2 path, over gloo. LAUNCH is a file of
recipes/accelerate, whose settings reach the processes as `accelerate launch` hands them over.
"""

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType

_init = PartialState.__init__


def _as_accelerators(self: PartialState, *words: Any, **keys: Any) -> None:
    _init(self, *words, **keys)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    settings = yaml.safe_load(Path(sys.argv[1]).read_text())["fsdp_config"]
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    os.environ.update(ACCELERATE_USE_CPU="true", ACCELERATE_USE_FSDP="true")
    PartialState.__init__ = _as_accelerators  # type: ignore[method-assign]

    from ibnorm_hf.cli import main

    sys.exit(main(["pretrain", *sys.argv[2:]]))
