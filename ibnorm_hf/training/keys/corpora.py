# SPDX-License-Identifier: Apache-2.0
"""The key `corpus`, read: one source or several, each with what is its own, and the share of the tokens it may have."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.corpus import corpus_names
from ...common.errors import did_you_mean
from .arguments import DataArguments

# Keys of an entry -> the key of the recipe that it replaces for this source alone.
_OWN = {
    "config": "corpus_config",
    "split": "corpus_split",
    "revision": "corpus_revision",
    "text_column": "text_column",
}


@dataclass(frozen=True)
class CorpusEntry:
    """One source of a corpus.

    Args:
        name: as the key ``corpus`` would have it.
        weight: its share of the training tokens beside the weights of the others; None in a list without weights.
        own: keys of the recipe that are others for this source.
    """

    name: str
    weight: float | None
    own: dict[str, Any]

    def arguments(self, data: DataArguments) -> DataArguments:
        """The recipe's data keys, of a corpus that is this source alone."""
        return dataclasses.replace(data, corpus=self.name, **self.own)


def corpus_entries(value: Any, *, weighted: bool = True) -> tuple[CorpusEntry, ...]:
    """The sources that ``corpus`` (or, not ``weighted``, ``validation_corpus``) names.

    Raises:
        ValueError: with the end of a sentence about the key.
    """
    given = value if isinstance(value, list) else [value]
    if not given:
        raise ValueError("is an empty list; name a file, a folder, a pattern or a data set")
    entries = tuple(_entry(item) for item in given)
    if len(given) > 1 and not all(entry.name for entry in entries):
        raise ValueError("has an empty name; name a file, a folder, a pattern or a data set")
    places: set[Any] = set()
    for entry in entries:
        if (place := _place(entry)) in places:
            raise ValueError(f"names '{entry.name}' twice; give it once, with the weight of both")
        places.add(place)
    weights = [entry.weight for entry in entries]
    if weights.count(None) not in (0, len(weights)):
        bare = next(entry.name for entry in entries if entry.weight is None)
        raise ValueError(f"gives some sources a weight and '{bare}' none; weigh all of them or none")
    if not weighted and weights[0] is not None:
        raise ValueError("takes no weights: all of its text is read, in its order")
    return entries


def entry_values(entry: CorpusEntry) -> dict[str, Any]:
    """An entry as a recipe writes it."""
    own = {short: entry.own[key] for short, key in _OWN.items() if key in entry.own}
    return {"name": entry.name, **({} if entry.weight is None else {"weight": entry.weight}), **own}


def shares(entries: tuple[CorpusEntry, ...]) -> list[float] | None:
    """What part of the training tokens each source may have, their sum being 1; None for a list without weights."""
    weights = [entry.weight for entry in entries if entry.weight is not None]
    return [weight / math.fsum(weights) for weight in weights] or None


def is_pattern(name: str) -> bool:
    """Whether a name is a glob; a file that is really called so is none."""
    return glob.has_magic(name) and "\0" not in name and not os.path.exists(os.path.expanduser(name))


def beside(value: Any, folder: Path, words: tuple[str, ...] = ()) -> Any:
    """``value`` with each relative path that leads to something from ``folder`` taken from there, but for ``words``."""
    if isinstance(value, list):
        return [beside(item, folder, words) for item in value]
    if isinstance(value, dict):
        return {**value, "name": beside(value["name"], folder, words)} if isinstance(value.get("name"), str) else value
    if not isinstance(value, str) or not value or value in words:
        return value
    found = folder / value
    if os.path.exists(found):  # unlike that of a Path, this is False for what can be no path
        return value if os.path.exists(value) and found.samefile(value) else str(found)
    pattern = str(Path(glob.escape(str(folder))) / value)
    there = is_pattern(value) and next(glob.iglob(pattern, recursive=True), None) is not None
    return pattern if there and folder.resolve() != Path().resolve() else value


def _entry(item: Any) -> CorpusEntry:
    if not isinstance(item, dict):
        if item is None or isinstance(item, (list, bool)):
            raise ValueError(f"has the entry {item}; an entry is a name or {{name: a.txt, weight: 0.7}}")
        return CorpusEntry(str(item), None, {})
    if unknown := [key for key in item if key not in ("name", "weight", *_OWN)]:
        raise ValueError(
            f"has an entry with '{unknown[0]}'{did_you_mean(str(unknown[0]), ['name', 'weight', *_OWN])}; an entry is "
            f"{{name, weight, {', '.join(_OWN)}}}"
        )
    if not isinstance(item.get("name"), str):
        raise ValueError("has an entry without a name; write {name: a.txt, weight: 0.7}")
    own = {_OWN[key]: str(item[key]) for key in _OWN if item.get(key) is not None}
    return CorpusEntry(item["name"], _weight(item), own)


def _weight(item: dict[str, Any]) -> float | None:
    given = item.get("weight")
    if given is None:
        return None
    try:
        weight = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(
            f"gives '{corpus_names(item)[0]}' the weight {given}; a weight is a number above 0, leave out what is not "
            "to be read"
        )
    return weight


def _place(entry: CorpusEntry) -> Any:
    """What two entries must not have in common."""
    path = os.path.expanduser(entry.name)
    return os.path.realpath(path) if os.path.exists(path) else (entry.name, tuple(sorted(entry.own.items())))
