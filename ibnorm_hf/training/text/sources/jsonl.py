# SPDX-License-Identifier: Apache-2.0
"""JSON lines: a record a line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .base import Piece
from .files import FileReader


class JsonLines(FileReader):
    """One JSON object a line."""

    endings = (".jsonl", ".json")

    def read(self) -> Iterator[Piece]:
        for number, line in self.lines():
            if not line.strip():
                continue
            where = f"{self.path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                self.bad.add(where, "malformed JSON")
                continue
            yield from self.columns.read(record, where, self.bad)
