# SPDX-License-Identifier: Apache-2.0
"""Every key in words, for `ibnorm-hf keys`."""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from typing import Any

from ...common.errors import UserError, did_you_mean
from .arguments import DataArguments, ModelArguments, RunArguments
from .checks import WITHOUT_EPOCHS
from .image_arguments import ImageArguments
from .reading import key_types, known_keys
from .recipe import bound
from .table import REFUSED
from .values import describe


def key_lines(word: str | None = None) -> list[str]:
    """One paragraph a key that a recipe may name: type, default, bound or free, meaning; refused ones with the reason.

    Args:
        word: only keys whose name or meaning holds it.

    Raises:
        UserError: no key does.
    """
    out, wanted, names = [], (word or "").lower().replace("-", "_"), set()
    kinds = (("text", DataArguments), ("images", ImageArguments))
    for cls in (ModelArguments, DataArguments, ImageArguments, RunArguments):
        for item in dataclasses.fields(cls):
            homes = [(name, data) for name, data in kinds if cls not in (DataArguments, ImageArguments) or data is cls]
            if item.name not in known_keys(homes[0][1]):
                continue
            names.add(item.name)
            meaning = _meaning(item)
            if wanted in item.name or wanted in meaning.lower():
                states = {("bound" if bound(item.name, data) else "free"): name for name, data in homes}
                state = next(iter(states)) if len(states) == 1 else "bound for images, free for text"
                only = f", {homes[0][0]} alone" if len(homes) == 1 else ""
                kind = _kind(item.name, key_types(homes[0][1])[item.name])
                out.append(f"{item.name}: {kind}; default {_default(item)}; {state}{only}\n    {meaning}")
    out += [f"{key}: refused\n    {why}" for key, why in REFUSED.items() if word and wanted in key]
    if not out:
        raise UserError(f"no key holds '{word}'{did_you_mean(wanted, [*names, *REFUSED])}")
    return out


def _kind(name: str, kind: Any) -> str:
    return f"one of {', '.join(WITHOUT_EPOCHS)}" if name in ("eval_strategy", "save_strategy") else describe(kind)


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default.value if isinstance(item.default, Enum) else item.default
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(item: dataclasses.Field[Any]) -> str:
    """Our own help, or the library's, of which the first sentence is enough where it is long."""
    text = " ".join(str(item.metadata.get("help", "")).split())
    return text if len(text) <= 200 else re.split(r"(?<=[.;])\s", text)[0]
