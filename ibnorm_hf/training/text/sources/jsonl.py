# SPDX-License-Identifier: Apache-2.0
"""JSON: a record a line, or one array of records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from ....common.errors import UserError
from .base import Piece
from .files import FileReader

_MAX_ARRAY_CHARS = 1 << 28  # an array is parsed as a whole
_FIRST = 20  # records that show which columns there are


class JsonLines(FileReader):
    """One JSON object a line; or, in files that begin so, one array of them."""

    endings = (".jsonl", ".ndjson", ".json")

    def read(self) -> Iterator[Piece]:
        records = self._records()
        first = list(islice(records, _FIRST))
        keys = [list(record) if isinstance(record, dict) else [] for _, record in first]
        # One record may lack its text; where all of the first do, the key of the recipe is wrong.
        if any(keys) and all(self.columns.missing(names) for names in keys):
            raise UserError(f"corpus file {self.path} {self.columns.missing(next(filter(None, keys)))}")
        for where, record in chain(first, records):
            yield from self.columns.read(record, where, self.bad)

    def _records(self) -> Iterator[tuple[str, Any]]:
        lines = ((number, line) for number, line in self.lines() if line.strip())
        head = next(lines, None)
        if head is None:
            return
        if head[1].lstrip().startswith("[") and not _is_record(head[1]):
            yield from self._array(chain([head], lines))
            return
        for number, line in chain([head], lines):
            where = f"{self.path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                self.bad.add(where, "malformed JSON")
                continue
            yield where, record

    def _array(self, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Any]]:
        held, size = [], 0
        for _, line in lines:
            held.append(line)
            size += len(line)
            if size > _MAX_ARRAY_CHARS:
                raise UserError(f"corpus file {self.path} is too large an array; write a record a line")
        try:
            records = json.loads("".join(held))
        except (ValueError, RecursionError) as error:
            raise UserError(f"corpus file {self.path} begins as a JSON array and is none: {error}") from None
        for number, record in enumerate(records, start=1):
            yield f"{self.path} record {number}", record


def _is_record(line: str) -> bool:
    """Whether a line that begins with a bracket is a record by itself, if a bad one, and not the head of an array."""
    try:
        return not any(isinstance(item, dict) for item in json.loads(line))
    except (ValueError, RecursionError, TypeError):
        return False
