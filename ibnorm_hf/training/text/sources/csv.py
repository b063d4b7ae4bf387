# SPDX-License-Identifier: Apache-2.0
"""Tables of comma- or tab-separated values: a record a row, columns named by the first."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from ....common.errors import UserError
from .base import Piece
from .files import FileReader
from .records import MAX_LINE_BYTES


class Csv(FileReader):
    """CSV as spreadsheets write it: quoted values may hold separators and line ends."""

    endings = (".csv", ".tsv")

    def read(self) -> Iterator[Piece]:
        csv.field_size_limit(MAX_LINE_BYTES)
        lines = (line for _, line in self.lines())
        separator = "\t" if ".tsv" in self.path.name.lower() else ","
        rows = csv.DictReader(lines, delimiter=separator, strict=True)
        try:
            if missing := self.columns.missing(list(rows.fieldnames or [])):
                raise UserError(f"corpus file {self.path} {missing}")
            for record in rows:
                where = f"{self.path}:{rows.line_num}"
                if None in record or None in record.values():
                    self.bad.add(where, "another number of values than the first line")
                else:
                    yield from self.columns.read(record, where, self.bad)
        except csv.Error as error:
            raise UserError(f"corpus file {self.path} is damaged near line {rows.line_num}: {error}") from None
