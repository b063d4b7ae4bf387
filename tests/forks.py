# SPDX-License-Identifier: Apache-2.0
"""What a process does once before it forks many runs, so that none of them has to."""

import atexit
import gc

import torch


def get_ready() -> None:
    """Import what a run needs, with one thread; start none.

    What is there is walked by no fork's garbage collection, which would take time and copy the pages it touches.
    """
    import transformers.models.llama.modeling_llama  # noqa: F401

    import ibnorm_hf.cli
    import ibnorm_hf.studies.compare
    import ibnorm_hf.training.job  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or libraries complain of what was never freed
