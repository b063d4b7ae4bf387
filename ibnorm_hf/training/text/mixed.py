# SPDX-License-Identifier: Apache-2.0
"""Tokens of several sources as one stream: each is tokenized by itself, and documents are drawn by their tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from ...common.errors import UserError
from .batches import Batch, Render, batches
from .encode import Encoder
from .sources.base import BadRecords, Piece, Source
from .sources.mixture import Draw, Several


class _Stream:
    """One source, tokenized ahead; what was taken of it, and the place to go on from, are told apart from that."""

    def __init__(self, number: int, source: Source, encoder: Encoder, render: Render, place: dict[str, Any]) -> None:
        self.number, self.source, self.encoder, self.render = number, source, encoder, render
        self.state, self.skip, self.passes = place["state"], place["skip"], place["passes"]
        self.done = place["done"]
        # Counts of the first reading, up to the end of the batch that is taken from, and up to its beginning.
        self.bad_before = place["bad_before"]
        self.bad = place["bad"] if self.passes or self.done else self.bad_before
        source.bad = BadRecords(1 << 62)  # of its own, and judged together with those of the others
        source.bad.restore(self.bad)
        self._open()
        skipped, self.skip = self.skip, 0
        for _ in range(0 if self.done else skipped):
            self.take()

    def _open(self) -> None:
        self.held: deque[tuple[Piece, list[np.ndarray]]] = deque()
        self.batches: Generator[Any, None, None] = self.encoder.map(batches(self.source, self.state, self.render))
        self.next_state = self.state

    def take(self) -> tuple[Piece, list[np.ndarray]] | None:
        """The next piece and its tokens; None at the end."""
        while not self.held:
            found = None if self.done else next(self.batches, None)
            if found is None:
                self.done = True
                if not self.passes:
                    self.bad = self.source.bad.state()  # those after the last piece too
                return None
            ids, batch = found
            self.state, self.next_state, self.skip = self.next_state, batch.state, 0
            if not self.passes:
                self.bad_before, self.bad = self.bad, batch.bad
            rows = iter(ids)
            self.held.extend((piece, [next(rows) for _ in piece.texts]) for piece in batch.pieces)
        piece, rows_of_it = self.held.popleft()
        self.skip += 1
        piece.source, piece.again = self.number, self.passes > 0
        return piece, rows_of_it

    def again(self) -> None:
        """Begin the source once more."""
        self.passes += 1
        self.state, self.skip, self.done = None, 0, False
        self._open()

    def place(self) -> dict[str, Any]:
        """Plain values from which a stream of the same source goes on."""
        return {
            "state": self.state,
            "skip": self.skip,
            "passes": self.passes,
            "done": self.done,
            "bad": self.bad,
            "bad_before": self.bad_before,
        }


def fresh_places(count: int) -> list[dict[str, Any]]:
    """The places of sources that nothing has been read of."""
    none = BadRecords(0).state()
    start = {"state": None, "skip": 0, "passes": 0, "done": False, "bad": none, "bad_before": none}
    return [dict(start) for _ in range(count)]


def mixed(
    mixture: Several,
    encoder: Encoder,
    begin: Any,
    render: Render,
    tokens: Callable[[], Sequence[int]],
    full: Callable[[], bool],
    ran_out: Callable[[int, bool], None],
) -> Iterator[tuple[list[np.ndarray], Batch]]:
    """Turns of the sources, each a document or a stretch of a long one, as the shares of the mixture want them.

    Args:
        mixture: the sources.
        encoder: what tokenizes them all.
        begin: the state of a batch that was yielded by an earlier call, or None.
        render: as `batches` takes it.
        tokens: says how many training tokens each source has given so far.
        full: says whether there is room for more of them; then nothing is begun again.
        ran_out: is called with the number of a source that has ended, and whether it is begun again.
    """
    draw = Draw(mixture, window=mixture.data.block_size)
    places = fresh_places(len(mixture.sources))
    if begin is not None:
        places, draw.turns, draw.passes = begin["places"], list(begin["turns"]), list(begin["passes"])
    parts = zip(mixture.sources, places, strict=True)
    streams = [_Stream(i, source, encoder, render, place) for i, (source, place) in enumerate(parts)]

    def state() -> dict[str, Any]:
        return {"places": [s.place() for s in streams], "turns": list(draw.turns), "passes": list(draw.passes)}

    counted: list[Any] = []
    try:
        while (index := draw.choose(tokens())) is not None:
            turn = _turn(streams[index], draw.window)
            if (bad := [stream.bad for stream in streams]) != counted:
                counted = bad
                mixture.bad.merge(bad)
            if turn:
                draw.took(index)
                batch = Batch([piece for piece, _ in turn], state, mixture.bad.state(), None)
                yield [row for _, rows in turn for row in rows], batch
            else:
                begun_again = draw.ran_out(index) and not full()
                if mixture.shares is not None and not tokens()[index]:
                    raise UserError(
                        f"corpus '{draw.names[index]}' has nothing to train on: all of it is held out or too long; "
                        "give more of it, lower validation_fraction, or leave it out"
                    )
                ran_out(index, begun_again)
                if begun_again:
                    streams[index].again()
                elif mixture.shares is not None:
                    return
    finally:
        for stream in streams:
            stream.batches.close()


def _turn(stream: _Stream, window: int) -> list[tuple[Piece, list[np.ndarray]]]:
    """A document, or at least ``window`` tokens of one; nothing at the end of the source."""
    turn: list[tuple[Piece, list[np.ndarray]]] = []
    size = 0
    while (found := stream.take()) is not None:
        turn.append(found)
        size += sum(map(len, found[1]))
        if found[0].ends_document:
            break
        if size >= window:
            found[0].cut = True
            break
    return turn
