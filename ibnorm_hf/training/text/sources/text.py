# SPDX-License-Identifier: Apache-2.0
"""Plain text: a file is one document, or each of its lines or paragraphs is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ...keys.arguments import DataArguments
from .base import Piece
from .files import FileReader

MAX_PIECE_CHARS = 1 << 16  # long documents are read in pieces of about this size


class PlainText(FileReader):
    """A text file is one document (or several, parted by ``separator`` lines), cut at line ends."""

    endings: ClassVar[tuple[str, ...]] = (".txt",)
    has_columns = False
    version = 3
    cuts_lines = True
    separator: str | None = None

    def __init__(self, data: DataArguments, path: Path, *words: Any) -> None:
        super().__init__(data, path, *words)
        self.sample_by = data.sample_by

    def read(self) -> Iterator[Piece]:
        limit = min(MAX_PIECE_CHARS, max(256, self.whole // 64))
        if self.sample_by != "document" and self.separator is None:
            yield from self._parted(limit)
        else:
            yield from self._whole(limit)

    def _parted(self, limit: int) -> Iterator[Piece]:
        """Lines or paragraphs, long ones in pieces; without the line ends that part them."""
        waiting: Piece | None = None  # until it is known whether it ends its document
        held: list[str] = []
        size = 0
        for line in _in_parts((line for _, line in self.lines()), 8 * limit, limit):
            blank = not line.strip()
            ended = blank if self.sample_by == "paragraph" else line.endswith("\n")
            if not blank:
                held.append(line)
                size += len(line)
            if held and (ended or size >= limit):
                if waiting is not None:
                    yield waiting
                text = "".join(held)
                waiting = Piece(text.removesuffix("\n") if ended else text, ended)
                held, size = [], 0
            elif ended and waiting is not None:
                waiting.ends_document = True
        if waiting is not None:
            waiting.ends_document = waiting.ends_document or not held
            yield waiting
        if held:
            yield Piece("".join(held).removesuffix("\n"), True)

    def _whole(self, limit: int) -> Iterator[Piece]:
        """Documents in pieces; one is held back until it is known whether it ends its document."""
        waiting: Piece | None = None
        held: list[str] = []
        size = 0
        for line in _in_parts((line for _, line in self.lines()), 8 * limit, limit):
            ended = self.separator is not None and line.strip("\n ") == self.separator
            if not ended:
                held.append(line)
                size += len(line)
            # Cut at a blank line; a text without any is cut at the first line end past twice the limit.
            if ended or (size >= limit and (not line.strip() or size >= 2 * limit)):
                text = "".join(held)
                if text.strip():
                    if waiting is not None:
                        yield waiting
                    waiting = Piece(text, ended)
                elif ended and waiting is not None:
                    waiting.ends_document = True
                held, size = [], 0
        text = "".join(held)
        if waiting is not None:
            waiting.ends_document = waiting.ends_document or not text.strip()
            yield waiting
        if text.strip():
            yield Piece(text, True)


def _in_parts(lines: Iterator[str], longest: int, size: int) -> Iterator[str]:
    """Lines; one over ``longest`` characters in parts of about ``size``, cut before a space where there is one."""
    for line in lines:
        if len(line) <= longest:
            yield line
            continue
        start = 0
        while start < len(line):
            stop = start + size
            space = line.rfind(" ", start + size // 2, stop)
            stop = space if space > 0 and stop < len(line) else stop
            yield line[start:stop]
            start = stop
