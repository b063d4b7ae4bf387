# SPDX-License-Identifier: Apache-2.0
"""Pieces of a source, gathered into what is tokenized at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .encode import Item
from .sources.base import BadRecords, Piece, Source

BATCH_CHARS = 250_000  # text tokenized at once; a worker needs some 50 times as many bytes

# What is tokenized of a piece; None, and a bad record counted, where nothing can be.
Render = Callable[[Piece, BadRecords], "list[Item] | None"]


@dataclass
class Batch:
    """Pieces to tokenize at once, and where the source stands right after them: plain values, or what returns them."""

    pieces: list[Piece]
    state: Any
    bad: dict[str, Any]
    consumed: int | None

    def place(self) -> Any:
        """The state as plain values."""
        return self.state() if callable(self.state) else self.state


def as_it_is(piece: Piece, bad: BadRecords) -> list[Item]:
    """The texts of a piece."""
    return list(piece.texts)


def batches(source: Source, begin: Any, render: Render = as_it_is) -> Iterator[tuple[list[Item], Batch]]:
    """(what to tokenize, its batch) of a source, from the state ``begin`` on."""
    held: list[Piece] = []
    items: list[Item] = []
    size = 0
    state = begin
    for piece, after in source.pieces(begin):
        found = render(piece, source.bad)
        state = after
        if found is None:
            continue
        held.append(piece)
        items += found
        size += piece.chars
        if size >= BATCH_CHARS:
            yield items, _batch(held, state, source)
            held, items, size = [], [], 0
    if held:
        yield items, _batch(held, state, source)


def _batch(pieces: list[Piece], state: Any, source: Source) -> Batch:
    # The state is taken now: with several workers the source is read ahead of what is written.
    return Batch(pieces, state() if callable(state) else state, source.bad.state(), source.consumed())
