# SPDX-License-Identifier: Apache-2.0
"""Several sources as one: a list, read one after another, or a mixture, drawn document by document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from ....common.errors import UserError
from ....common.paths import digest
from ...keys.arguments import DataArguments
from ...keys.corpora import corpus_entries, shares
from .base import BadRecords, Piece, Source
from .registry import open_source


class Several(Source):
    """The sources of a list, or of a mixture where they have weights."""

    order = -1

    def __init__(self, data: DataArguments, corpus: list[Any]) -> None:
        super().__init__(data)
        self.entries = corpus_entries(corpus)
        self.shares = shares(self.entries)
        self.sources = [open_source(entry.arguments(data)) for entry in self.entries]
        self.version = max(source.version for source in self.sources)
        endless = [e.name for e, source in zip(self.entries, self.sources, strict=True) if source.endless]
        if endless and self.shares is None and len(self.entries) > 1:
            raise UserError(
                f"corpus '{endless[0]}' is a data set on the Hub, after whose end the list would wait; give every "
                "source of the list a weight: {name: ..., weight: ...}"
            )
        self._require_apart()

    @classmethod
    def claims(cls, corpus: Any) -> bool:
        return isinstance(corpus, list)

    @classmethod
    def open(cls, data: DataArguments, corpus: Any) -> Source:
        return cls(data, corpus)

    def _require_apart(self) -> None:
        seen: dict[Any, str] = {}
        for entry, source in zip(self.entries, self.sources, strict=True):
            for mark, name in source.contents().items():
                if mark in seen:
                    raise UserError(
                        f"corpus '{entry.name}' gives {name} the content of {seen[mark]}, which another source of the "
                        "corpus gives as well; leave one of them out"
                    )
            seen |= source.contents()

    @property
    def endless(self) -> bool:
        return any(source.endless for source in self.sources)

    @property
    def has_plain_text(self) -> bool:
        return any(source.has_plain_text for source in self.sources)

    def contents(self) -> dict[Any, str]:
        return {mark: name for source in self.sources for mark, name in source.contents().items()}

    def size_hint(self) -> int | None:
        sizes = [source.size_hint() for source in self.sources]
        known = [size for size in sizes if size is not None]
        if self.shares is None:
            return sum(known) if len(known) == len(sizes) else None
        # What is read until a mixture ends, as far as bytes go like tokens.
        whole = [size / share for size, share in zip(sizes, self.shares, strict=True) if size is not None]
        if self.repeats:
            return int(max(whole)) if len(known) == len(sizes) else None
        return int(min(whole)) if whole else None

    @property
    def repeats(self) -> bool:
        """Whether a source that has run out is begun again."""
        return self.data.corpus_stopping_strategy == "all_exhausted"

    def fingerprint(self) -> str:
        marks = [source.fingerprint() for source in self.sources]
        if self.shares is None:
            return digest(["list", marks])
        return digest(["mixture", marks, self.shares, self.data.corpus_seed, self.data.corpus_stopping_strategy])

    def describe(self) -> dict[str, Any]:
        sources = [{"name": e.name, **s.describe()} for e, s in zip(self.entries, self.sources, strict=True)]
        if self.shares is None:
            return {"kind": "list", "sources": sources}
        return {
            "kind": "mixture",
            "sources": [{**one, "share": share} for one, share in zip(sources, self.shares, strict=True)],
            "seed": self.data.corpus_seed,
            "stopping_strategy": self.data.corpus_stopping_strategy,
        }

    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        """The pieces in an order that characters weigh; not to be taken up again.

        So a tokenizer reads them, before there are any tokens. Blocks are made by `text.mixed`.
        """
        assert state is None
        streams = [source.pieces() for source in self.sources]
        taken = [0] * len(streams)
        draw = Draw(self, window=4 * self.data.block_size)
        while (index := draw.choose(taken)) is not None:
            turn, over = 0, False
            while not over and (found := next(streams[index], None)) is not None:
                turn += found[0].chars
                over = found[0].ends_document or turn >= draw.window
                yield found
            taken[index] += turn
            if turn:
                draw.took(index)
            elif draw.ran_out(index):
                self.sources[index].bad = BadRecords(1 << 62)  # they have been counted
                streams[index] = self.sources[index].pieces()


class Draw:
    """Which source the next document is of.

    In a mixture it is drawn with probabilities that are what each source is owed: its share of what has been taken,
    and of a ``window`` more, less what was taken of it. So shares are kept to about a window, whatever the documents'
    lengths, and the order depends on the seed and the documents before alone. A list is read in its order.
    """

    def __init__(self, mixture: Several, window: int) -> None:
        self.shares, self.seed, self.window = mixture.shares, mixture.data.corpus_seed, window
        self.repeats = mixture.repeats
        self.names = [entry.name for entry in mixture.entries]
        self.turns = [0] * len(self.names)  # how often each source was taken from
        self.passes = [0] * len(self.names)  # how often it has run out

    def choose(self, taken: Sequence[int]) -> int | None:
        """The number of a source, ``taken`` being how much each has given; None when the corpus has ended."""
        out = [times > 0 for times in self.passes]
        if self.shares is None:
            return out.index(False) if False in out else None
        if all(out) if self.repeats else any(out):
            return None
        whole = sum(taken) + self.window
        owed = [max(0.0, share * whole - got) for share, got in zip(self.shares, taken, strict=True)]
        point = self._uniform() * sum(owed)
        for index, part in enumerate(owed):
            point -= part
            if point < 0:
                return index
        return max(range(len(owed)), key=owed.__getitem__)  # rounding

    def took(self, index: int) -> None:
        """A source was taken from."""
        self.turns[index] += 1

    def ran_out(self, index: int) -> bool:
        """A source has nothing more to give; returns whether it is to be begun again.

        Raises:
            UserError: it gave nothing at all, and so cannot have its share.
        """
        self.passes[index] += 1
        if self.shares is not None and not self.turns[index]:
            raise UserError(f"corpus '{self.names[index]}' holds no text to take its share of; leave it out")
        return self.repeats and self.shares is not None

    def _uniform(self) -> float:
        drawn = hashlib.sha256(f"{self.seed} {sum(self.turns)} {sum(self.passes)}".encode()).digest()
        return int.from_bytes(drawn[:6], "big") / (1 << 48)
