# SPDX-License-Identifier: Apache-2.0
"""A recipe's file and the command line's words -> one mapping of known keys to typed values. Builds nothing yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from transformers import TrainingArguments

from ...common import strict_yaml
from ...common.errors import UserError, did_you_mean
from ...common.secrets import holds_secret
from .arguments import DataArguments, ModelArguments, RunArguments
from .files import locate, read_recipe
from .image_arguments import ImageArguments
from .table import BOUND, FREE, IDENTITY_VERSION, REFUSED, SYNONYMS, VERSION_KEY
from .values import fit, from_words


@dataclass
class Asked:
    """What a recipe and its command line ask for.

    Args:
        values: key -> value, of the type that the key's dataclass declares.
        sizes: the ``model:`` mapping.
        where: key -> the file or `command line`, for messages.
        default: what to name for a key that nobody gave.
        data: the dataclass of the data's keys: text or images.
    """

    values: dict[str, Any]
    sizes: dict[str, Any]
    where: dict[str, str]
    default: str
    data: type

    def place(self, key: str) -> str:
        """Where a key stands."""
        return self.where.get(key, self.default)

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys of the command line, sizes as ``model.NAME``, in their order."""
        found = [key for key, where in self.where.items() if where == COMMAND_LINE]
        return {
            key: self.sizes[key.removeprefix("model.")] if key.startswith("model.") else self.values[key]
            for key in found
        }


COMMAND_LINE = "command line"


def parse_overrides(arguments: list[str]) -> dict[str, list[str]]:
    """Split ``--key value ... --other=value`` into a mapping of keys to their words."""
    overrides: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            current = overrides[_normal(key)] = [value] if equals else []
        elif current is None:
            raise UserError(f"command line: '{word}' is not a --key; write `RECIPE --key value`")
        else:
            current.append(word)
    return overrides


def _normal(key: str) -> str:
    head, dot, tail = key.partition(".")
    return head.replace("-", "_") + dot + tail.replace("-", "_")


def known_keys(data: type) -> dict[str, dataclasses.Field[Any]]:
    """Every key that a recipe with this kind of data may name, and its field.

    A key of TrainingArguments that `table.py` does not name is none of them: somebody has to think about it first.
    """
    fields = {f.name: f for cls in (ModelArguments, data, RunArguments) for f in dataclasses.fields(cls)}
    library = {f.name for f in dataclasses.fields(TrainingArguments)}
    # Where both names of a key are there, the old one only repeats the new one.
    old = {name for name, new in SYNONYMS.items() if new in fields}
    thought_about = (BOUND | FREE | set(SYNONYMS)) - old
    return {name: f for name, f in fields.items() if name not in library or name in thought_about}


@lru_cache
def key_types(data: type) -> dict[str, Any]:
    """Key -> type, as declared; the fields' own ``type`` is rewritten by HfArgumentParser."""
    return {k: t for cls in (ModelArguments, data, RunArguments) for k, t in get_type_hints(cls).items()}


def read(path: str | Path, arguments: list[str]) -> Asked:
    """Merge a recipe's file and its base with the command line, which wins, and fit every value to its key.

    ``path`` is that of a file, or the name of a recipe that comes with the package.

    A recipe that says ``images`` trains a classifier: its data keys are those of ``ImageArguments``.

    Raises:
        UserError: an unknown, misspelt, refused or mistyped key, naming where it stands.
    """
    path = locate(path)
    (content, places), overrides = read_recipe(path), parse_overrides(arguments)
    version = content.pop(VERSION_KEY, IDENTITY_VERSION)  # of a run's config.yaml
    if not isinstance(version, int) or version > IDENTITY_VERSION:
        raise UserError(f"{path} was written by a later version of ibnorm_hf; update it")
    data: type = ImageArguments if "images" in {*content, *overrides} else DataArguments
    known, types = known_keys(data), key_types(data)
    asked = Asked({}, _sizes(content.pop("model", None), places.get("model", "")), {}, str(path), data)
    for key, value in content.items():
        _take(asked, key, value, places[key], known, types)
    for key, words in overrides.items():
        if key.startswith("model."):
            if len(words) != 1:
                raise UserError(f"command line: --{key} takes one value")
            asked.sizes[key.removeprefix("model.")] = strict_yaml.scalar(words[0])
            asked.where[key] = COMMAND_LINE
        else:
            _take(asked, key, words, COMMAND_LINE, known, types)
    return asked


def _sizes(value: Any, place: str) -> dict[str, Any]:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise UserError(f"{place}: key 'model' is a mapping of sizes, e.g. `model: {{hidden_size: 256}}`")
    return {str(k): strict_yaml.scalar(v) if isinstance(v, str) else v for k, v in value.items()}


def _take(asked: Asked, key: str, value: Any, where: str, known: Collection[str], types: dict[str, Any]) -> None:
    name = _check_key(key, where, known)
    kind = types[name]
    try:
        if where == COMMAND_LINE:
            value = from_words(kind, value)
        value = fit(kind, value)
        if holds_secret(str(value)):
            # It would stand in config.yaml, in the card, and in what trackers are told.
            raise ValueError("holds what looks like an access token; leave it out: tokens come by `hf auth login`")
        asked.values[name] = value
    except ValueError as error:
        raise UserError(f"{where}: key {name}: {error}") from None
    asked.where.pop(name, None)  # keys of the command line stand in its order
    asked.where[name] = where


def _check_key(key: str, where: str, known: Collection[str]) -> str:
    """Return the key under the name that the installed Transformers uses, or raise UserError."""
    for old, new in SYNONYMS.items():
        if key in (old, new) and (old in known or new in known):
            return new if new in known else old
    if key in REFUSED:
        raise UserError(f"{where}: key '{key}' is not supported: {REFUSED[key]}")
    if key not in known:
        raise UserError(f"{where}: unknown key '{key}'{did_you_mean(key, [*known, 'model'])}")
    return key
