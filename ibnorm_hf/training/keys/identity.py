# SPDX-License-Identifier: Apache-2.0
"""When two resolved recipes are one run: the keys that decide, compared across versions of this package."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...common.errors import UserError, one_line
from ...common.paths import digest
from .arguments import DataArguments
from .image_arguments import ImageArguments
from .reading import known_keys
from .recipe import Recipe, bound, resolved
from .table import IDENTITY_VERSION, SYNONYMS, VERSION_KEY, looks_at_validation

# What a run did whose files say nothing of a key. The first version left out keys of TrainingArguments that nobody had
# given, so the library decided; these are the library's values of that time, which later ones may change.
_UNSAID = {
    "optim": "adamw_torch_fused",
    "optim_args": None,
    "learning_rate": 5e-5,
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "neftune_noise_alpha": None,
    "full_determinism": False,
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "torch_compile": False,
    "torch_compile_mode": None,
    "activation_checkpointing": False,
    "activation_checkpointing_kwargs": None,
    "eval_delay": 0,
    "eval_on_start": False,
}
# Nobody wrote these down then, and they cannot be told from the recipe: no objection.
_UNKNOWN = ("per_device_train_batch_size", "processes", "torch_compile_backend")


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved recipe that decides the result; two halves of one run agree on it."""
    data = ImageArguments if "images" in config else DataArguments
    looks = looks_at_validation(config)
    return {key: value for key, value in config.items() if key == VERSION_KEY or bound(key, data, looks)}


def run_id(recipe: Recipe) -> str:
    """Short digest of `identity`."""
    defaults = {f.name: f.default for f in dataclasses.fields(recipe.data)}
    later: frozenset[str] = getattr(recipe.data, "later", frozenset())
    found = identity(resolved(recipe))
    return digest(_canonical({k: v for k, v in found.items() if k not in later or v != defaults[k]}))[:16]


def _canonical(value: Any) -> Any:
    """0 and 0.0 are one number, whichever of them a default or a file holds."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differences(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """One phrase for each key on which two identities differ; empty where they are one run.

    Args:
        theirs: as a run folder holds it, written by this version or an earlier one.
        mine: of a recipe that is to be trained now.

    Raises:
        UserError: a later version of this package wrote theirs.
    """
    version = theirs.get(VERSION_KEY, 1)
    if not isinstance(version, int) or version > IDENTITY_VERSION:
        raise UserError(
            f"the run was written by a later version of ibnorm_hf ({VERSION_KEY} {one_line(version, 20)}); update it"
        )
    theirs = {SYNONYMS.get(key, key): value for key, value in theirs.items()}
    wanted = identity({**theirs, **{key: value for key, value in mine.items() if key not in theirs}})
    then = {key: theirs[key] if key in theirs else _unsaid(key, mine) for key in wanted}
    return _phrases({**then, VERSION_KEY: None}, {**mine, VERSION_KEY: None})


def _unsaid(key: str, mine: dict[str, Any]) -> Any:
    if key in _UNKNOWN:
        return mine[key]
    if key in _UNSAID:
        return _UNSAID[key]
    known = {**known_keys(DataArguments), **known_keys(ImageArguments)}
    item = known.get(key)
    if item is None or item.default is dataclasses.MISSING:
        return None
    return getattr(item.default, "value", item.default)


def _phrases(theirs: dict[str, Any], mine: dict[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key in sorted(set(theirs) | set(mine), key=str):
        a, b = theirs.get(key), mine.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += _phrases(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{one_line(f'{prefix}{key}', 60)} is {one_line(a, 60)} there and {one_line(b, 60)} here")
    return out
