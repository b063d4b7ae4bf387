# SPDX-License-Identifier: Apache-2.0
"""Plain text: a file is one document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from .base import Piece
from .files import FileReader

MAX_PIECE_CHARS = 1 << 16  # long documents are read in pieces of about this size


class PlainText(FileReader):
    """A text file is one document (or several, parted by ``separator`` lines), cut at line ends."""

    endings: ClassVar[tuple[str, ...]] = (".txt",)
    has_columns = False
    separator: str | None = None

    def read(self) -> Iterator[Piece]:
        limit = min(MAX_PIECE_CHARS, max(256, self.whole // 64))
        held: list[str] = []
        size = 0
        for _, line in self.lines():
            ended = self.separator is not None and line.strip("\n ") == self.separator
            if not ended:
                held.append(line)
                size += len(line)
            # Cut at a blank line; a text without any is cut at the first line end past twice the limit.
            if ended or (size >= limit and (not line.strip() or size >= 2 * limit)):
                if size and "".join(held).strip():
                    yield Piece("".join(held), ended)
                held, size = [], 0
        text = "".join(held)
        if text.strip():
            yield Piece(text, True)
