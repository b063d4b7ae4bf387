# SPDX-License-Identifier: Apache-2.0
"""Which text is held out for validation."""

from __future__ import annotations

from .sources.base import Piece


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

    @property
    def _held(self) -> bool:
        return bool(self.period) and self.run % self.period == self.period // 2
