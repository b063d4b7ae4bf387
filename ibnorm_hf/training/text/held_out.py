# SPDX-License-Identifier: Apache-2.0
"""Which text is held out for validation."""

from __future__ import annotations

from typing import Any

from .sources.base import Piece, Source
from .sources.mixture import Several


class HeldOut:
    """Which pieces are validation: whole runs of consecutive text, spread evenly over the corpus.

    A run is about ``run_chars`` characters; every ``period``-th run is held out. The choice depends on
    the text alone, not on a token budget or a seed.
    """

    def __init__(self, fraction: float | None, size_hint: int | None) -> None:
        self.period = round(1 / fraction) if fraction else 0
        expected = 65536 if size_hint is None or not fraction else int(size_hint * fraction / 16)
        self.run_chars = min(65536, max(256, expected))
        self.run, self.chars = 0, 0

    def take(self, piece: Piece) -> tuple[bool, bool]:
        """(is validation, does the piece after it go to the other part) of the next piece."""
        held = self._held
        self.chars += piece.chars
        if self.period and self.chars >= self.run_chars:
            self.run, self.chars = self.run + 1, 0
        return held, self._held != held

    def restart(self, source: int) -> None:
        """A source of a mixture is read from its beginning once more."""

    def state(self) -> list[Any]:
        """The place as plain values, for `restore`."""
        return [self.run, self.chars]

    def restore(self, state: list[Any]) -> None:
        """Go on from a `state`."""
        self.run, self.chars = state

    @property
    def _held(self) -> bool:
        return bool(self.period) and self.run % self.period == self.period // 2


class HeldOutOfEach(HeldOut):
    """The same of each source of a mixture by itself: a source that is read again holds the same text out again."""

    def __init__(self, fraction: float | None, sizes: list[int | None]) -> None:
        super().__init__(fraction, None)
        self.fraction, self.sizes = fraction, sizes
        self.parts = [HeldOut(fraction, size) for size in sizes]

    def take(self, piece: Piece) -> tuple[bool, bool]:
        return self.parts[piece.source].take(piece)

    def restart(self, source: int) -> None:
        self.parts[source] = HeldOut(self.fraction, self.sizes[source])

    def state(self) -> list[Any]:
        return [part.state() for part in self.parts]

    def restore(self, state: list[Any]) -> None:
        for part, one in zip(self.parts, state, strict=True):
            part.restore(one)


def held_out_of(source: Source, fraction: float | None) -> HeldOut:
    """What is held out of a source."""
    if isinstance(source, Several) and source.shares is not None:
        return HeldOutOfEach(fraction, [one.size_hint() for one in source.sources])
    return HeldOut(fraction, source.size_hint())
