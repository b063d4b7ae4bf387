# SPDX-License-Identifier: Apache-2.0
"""The corpus `embedded`: the prose that every installation holds, a document a module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....common.paths import digest, file_sha256
from ...keys.arguments import DataArguments
from ..embedded import embedded_corpus
from .base import Piece, Source
from .files import readable
from .records import Columns
from .text import PlainText


class _Documents(PlainText):
    endings = ()
    separator = "\f"


class Embedded(Source):
    """One file of text in the cache, whose documents are parted by form feeds."""

    def __init__(self, data: DataArguments) -> None:
        super().__init__(data)
        self.path = embedded_corpus()
        self.version = _Documents.version
        self._reader: PlainText | None = None

    @classmethod
    def claims(cls, corpus: Any) -> bool:
        return corpus == "embedded"

    @classmethod
    def open(cls, data: DataArguments, corpus: str) -> Source:
        return cls(data)

    def size_hint(self) -> int:
        return self.path.stat().st_size

    def consumed(self) -> int | None:
        return None if self._reader is None else self._reader.consumed

    def contents(self) -> dict[Any, str]:
        return {file_sha256(self.path): "embedded"}

    def fingerprint(self) -> str:
        return digest(["files", Columns(self.data).mark(), "\f", [[self.path.name, file_sha256(self.path)]]])

    def describe(self) -> dict[str, Any]:
        return {"kind": "files", "path": str(self.path), "files": 1, "bytes_on_disk": self.size_hint()}

    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        _, skip = state or (0, 0)
        self._reader = _Documents(self.data, self.path, self.bad, self.size_hint())
        with readable(self.path):
            for number, piece in enumerate(self._reader.read()):
                if number >= skip:
                    yield piece, (0, number + 1)
