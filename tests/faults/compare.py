# SPDX-License-Identifier: Apache-2.0
"""Whether two finished run folders are the same run, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from ibnorm_hf.training.folder.manifest import checkpoints, verify

CLOCK = ("tokens_per_s", "images_per_s", "data_wait", "seconds", "core_seconds")


def log_lines(run: Path) -> list[dict]:
    """``metrics.jsonl`` without what a clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def same(a: Any, b: Any) -> bool:
    """Deep equality, bit for bit in tensors and arrays."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def load(path: Path) -> Any:
    """The content of a checkpoint's file."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with safe_globals():
        return torch.load(path, weights_only=True)


STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "ibnorm_state.json")


def weights(*folders: Path) -> list[str]:
    """Names of the weight files in any of the folders: of a model, or of an adapter."""
    names = {path.name for folder in folders for path in folder.glob("*.safetensors")}
    assert names, f"no weights in {folders}"
    return sorted(names)


def unlike(one: Path, two: Path) -> list[str]:
    """What differs between an undisturbed run and a resumed one: empty for one and the same run.

    The resumed one may keep one checkpoint more: that which it was resumed from is never deleted.
    """
    found = []
    if log_lines(one) != log_lines(two):
        found.append("metrics.jsonl (losses, learning rates, gradient norms, ids of samples)")
    a, b = dict(checkpoints(one)), dict(checkpoints(two))
    if not a.keys() <= b.keys() or len(b) > len(a) + 1:
        found.append(f"checkpoints {sorted(a)} and {sorted(b)}")
    for step in a.keys() & b.keys():
        verify(b[step])
        names = (*STATE, *weights(a[step], b[step]))
        found += [f"checkpoint-{step}/{name}" for name in names if not same(load(a[step] / name), load(b[step] / name))]
    for name in [*(f"model/{name}" for name in weights(one / "model", two / "model")), "eval/validation.json"]:
        if not same(load(one / name), load(two / name)):
            found.append(name)
    samples = [path.read_text() if (path := run / "eval/sample.txt").is_file() else None for run in (one, two)]
    if samples[0] != samples[1]:  # of images there are none
        found.append("eval/sample.txt")
    found += [f"left behind: {path.name}" for path in two.rglob(".*")]
    return found
