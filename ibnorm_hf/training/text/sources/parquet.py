# SPDX-License-Identifier: Apache-2.0
"""Parquet: a record a row."""

from __future__ import annotations

from collections.abc import Iterator

from ....common.errors import UserError
from .base import Piece
from .files import FileReader


class Parquet(FileReader):
    """A parquet file, of which only the columns of the text are read."""

    endings = (".parquet",)

    def read(self) -> Iterator[Piece]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path)
            if missing := self.columns.missing(file.schema_arrow.names):
                raise UserError(f"corpus file {self.path} {missing}")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=list(self.columns.names.values())):
                for record in batch.to_pylist():
                    number += 1
                    yield from self.columns.read(record, f"{self.path}:{number}", self.bad)
            if number != file.metadata.num_rows:
                raise UserError(f"corpus file {self.path} has {file.metadata.num_rows} rows, and {number} were read")
        except pa.ArrowException as error:
            raise UserError(f"corpus file {self.path} is damaged or unreadable: {error}") from None
