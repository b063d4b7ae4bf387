# SPDX-License-Identifier: Apache-2.0
"""Whether a plan fits where it is to run. A plan that cannot is refused before anything is read or packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

from ..common.errors import UserError
from .keys.launch import strategy
from .keys.recipe import Recipe
from .plan import Plan, size_text

_CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may have, where that is less than the machine has


def room(run: Any) -> int:
    """Bytes of the device that a process trains on: of its accelerator, or of the machine or container."""
    if run.device.type == "cuda":
        return int(torch.cuda.get_device_properties(run.device).total_memory)
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # there is no such file, or it says `max`
        return total


def fitting(plan: Plan, recipe: Recipe, *, dry: bool) -> list[str]:
    """The plan's lines, and one more where memory is short.

    Raises:
        UserError: it is, and neither ``dry`` nor the key force is set.
    """
    short = shortage(plan, recipe)
    if short and not dry and not recipe.run.force:
        raise UserError(f"{short}; --force tries it all the same")
    return [*plan.lines, *([f"memory: {short}"] if short else [])]


def shortage(plan: Plan, recipe: Recipe) -> str | None:
    """A sentence on what does not fit and the largest micro-batch that does; None where all fits.

    The estimate leaves out what libraries, caches and the data take, so it never refuses what would have fitted but
    for them.
    """
    run = recipe.run
    # Processes on a CPU share its memory; a sharding strategy divides weights and optimizer.
    sharing = max(1, run.world_size) if run.device.type == "cpu" else 1
    have = room(run) // sharing
    state = plan.bytes_state // (plan.processes if strategy() != "copy" else 1)
    if state + plan.bytes_activations <= have:
        return None
    micro, batch = run.per_device_train_batch_size, int(run.global_batch_size or 1)
    fits = [
        m
        for m in range(1, micro)
        if batch % (m * plan.processes) == 0 and state + plan.bytes_activations * m // micro <= have
    ]
    needs = f"{size_text(state)} + {size_text(plan.bytes_activations)} a process, and there are {size_text(have)}"
    if fits:
        advice = f"per_device_train_batch_size {fits[-1]} is the largest that fits"
    elif state < have:
        advice = f"no micro-batch fits; set activation_checkpointing, or lower {plan.lower} or the model"
    else:
        advice = "no micro-batch fits; shard it over more devices (recipes/accelerate/fsdp2.yaml), or lower the model"
    return f"weights, optimizer and activations need {needs}: {advice}"
