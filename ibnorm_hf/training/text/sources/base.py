# SPDX-License-Identifier: Apache-2.0
"""What every source of text is: an ordered stream of `Piece`s that can be left and taken up again anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ....common.errors import UserError
from ...keys.arguments import DataArguments


@dataclass
class Piece:
    """A stretch of text; ``ends_document`` tells whether the next piece belongs to another document.

    ``prompt`` is text before it that is read but not predicted.
    """

    text: str
    ends_document: bool
    prompt: str | None = None

    @property
    def texts(self) -> list[str]:
        """What is to be tokenized, each by itself: the prompt, if there is one, and the text."""
        return [self.text] if self.prompt is None else [self.prompt, self.text]

    @property
    def chars(self) -> int:
        """Characters of all `texts`."""
        return sum(map(len, self.texts))


@dataclass
class BadRecords:
    """Unreadable records: counted by reason, the first few named, and an end to patience."""

    limit: int
    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, where: str, reason: str) -> None:
        """Count one record; raises UserError once more than ``limit`` were bad."""
        self.counts[reason] += 1
        if len(self.first) < 5:
            self.first.append(f"{where} ({reason})")
        if sum(self.counts.values()) > self.limit:
            raise UserError(
                f"corpus: more than max_bad_records = {self.limit} unreadable records, first {', '.join(self.first)}; "
                "repair the corpus or raise max_bad_records"
            )

    def describe(self) -> dict[str, Any]:
        """Counts by reason and the first few places, for data.json."""
        return {"count": sum(self.counts.values()), "by_reason": dict(self.counts), "first": list(self.first)}

    def state(self) -> dict[str, Any]:
        """The counts as plain values, for `restore`."""
        return {"counts": dict(self.counts), "first": list(self.first)}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the counts to those of an interrupted preparation."""
        self.counts, self.first = Counter(state["counts"]), list(state["first"])


class Source(ABC):
    """An ordered, restartable stream of text pieces; the class knows which names of a corpus are its own."""

    order: ClassVar[int] = 0  # of two kinds that claim a name, the lower is taken
    version: int = 1  # raised where the same corpus would give other blocks than before

    def __init__(self, data: DataArguments, bad: BadRecords | None = None) -> None:
        self.data = data
        self.bad = bad or BadRecords(data.max_bad_records)

    @classmethod
    @abstractmethod
    def claims(cls, corpus: str) -> bool:
        """Whether ``corpus`` names a source of this kind."""

    @classmethod
    @abstractmethod
    def open(cls, data: DataArguments, corpus: str) -> Source:
        """The source that ``corpus`` names. Raises UserError if it cannot be read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that changes when the text may have changed."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the corpus is, for data.json."""

    @abstractmethod
    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        """Yield (piece, state after it), beginning after ``state``; a state, or what it returns if called, is JSON."""

    @property
    def endless(self) -> bool:
        """Whether it is too large to be read to its end unless that is asked for."""
        return False

    def validation(self) -> Source | None:
        """Where the recipe's own validation text is read from; None where pieces of this source are held out."""
        if self.data.validation_split:
            raise UserError("validation_split is for data sets on the Hub; a local corpus uses validation_fraction")
        return None

    def size_hint(self) -> int | None:
        """Bytes of text, roughly; None if unknown."""
        return None

    def consumed(self) -> int | None:
        """How many of the bytes of `size_hint` have been read; None if unknown."""
        return None
