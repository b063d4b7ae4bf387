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

    ``prompt`` is text before it that is read but not predicted. Of a conversation, ``messages`` are its turns, which a
    chat template makes text of; ``text`` is then what they say, and ``where`` the place of the record.
    """

    text: str
    ends_document: bool
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    where: str = ""
    predicted_bytes: int | None = None  # of a conversation as it was rendered
    # Of several sources: which one, whether it was read before, and whether another follows though it has not ended.
    source: int = 0
    again: bool = False
    cut: bool = False

    @property
    def texts(self) -> list[str]:
        """The prompt, if there is one, and the text; but for conversations, what is tokenized, each by itself."""
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
        self._judge()

    def _judge(self) -> None:
        if sum(self.counts.values()) > self.limit:
            raise UserError(
                f"corpus: more than max_bad_records = {self.limit} unreadable records, first {', '.join(self.first)}; "
                "repair the corpus or raise max_bad_records"
            )

    def describe(self) -> dict[str, Any]:
        """Counts by reason and the first few places, for data.json."""
        return {"count": sum(self.counts.values()), "by_reason": dict(self.counts), "first": list(self.first)}

    def merge(self, states: list[dict[str, Any]]) -> None:
        """Become the sum of what several counted; raises UserError once that is more than ``limit``."""
        self.counts = sum((Counter(state["counts"]) for state in states), Counter())
        self.first = [place for state in states for place in state["first"]][:5]
        self._judge()

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
    def claims(cls, corpus: Any) -> bool:
        """Whether ``corpus`` names a source of this kind."""

    @classmethod
    @abstractmethod
    def open(cls, data: DataArguments, corpus: Any) -> Source:
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
            raise UserError(
                "validation_split is for a corpus that is a data set on the Hub; use validation_fraction, or name text "
                "of its own by validation_corpus"
            )
        return None

    @abstractmethod
    def contents(self) -> dict[Any, str]:
        """Marks of what is read -> its name; what two sources have in common is in both. Empty files have no mark."""

    @property
    def has_plain_text(self) -> bool:
        """Whether some of it has no columns."""
        return False

    def size_hint(self) -> int | None:
        """Bytes of text, roughly; None if unknown."""
        return None

    def consumed(self) -> int | None:
        """How many of the bytes of `size_hint` have been read; None if unknown."""
        return None
