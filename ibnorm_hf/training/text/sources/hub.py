# SPDX-License-Identifier: Apache-2.0
"""Data sets on the Hub, streamed in their own order (a shuffled stream cannot be resumed exactly)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....common.errors import UserError
from ....common.paths import digest
from ...keys.arguments import DataArguments
from .base import Piece, Source
from .records import Columns


class HubSource(Source):
    """A split of a data set on the Hub; whatever no other kind claims is taken for the name of one."""

    order = 9

    def __init__(self, data: DataArguments, corpus: str, *, split: str) -> None:
        super().__init__(data)
        self.corpus, self.split, self.columns = corpus, split, Columns(data)

    @classmethod
    def claims(cls, corpus: str) -> bool:
        return True

    @classmethod
    def open(cls, data: DataArguments, corpus: str) -> Source:
        return cls(data, corpus, split=data.corpus_split)

    @property
    def endless(self) -> bool:
        return True

    def validation(self) -> Source | None:
        split = self.data.validation_split
        return HubSource(self.data, self.corpus, split=split) if split else None

    def fingerprint(self) -> str:
        data = self.data
        return digest(["hub", self.corpus, data.corpus_config, self.split, data.corpus_revision, self.columns.mark()])

    def describe(self) -> dict[str, Any]:
        data = self.data
        return {
            "kind": "hub",
            "name": self.corpus,
            "config": data.corpus_config,
            "split": self.split,
            "revision": data.corpus_revision,
        }

    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        stream = self._open()
        if state is not None:
            stream.load_state_dict(state)
        for number, record in enumerate(stream):
            for piece in self.columns.read(record, f"{self.corpus} record {number}", self.bad):
                # The state is a nested mapping: taking it for every record would cost more than reading.
                yield piece, stream.state_dict

    def _open(self) -> Any:
        from datasets import load_dataset

        data = self.data
        try:
            stream = load_dataset(
                self.corpus, data.corpus_config, split=self.split, revision=data.corpus_revision, streaming=True
            )
        except Exception as error:  # the library raises many kinds, from network to parsing
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"corpus '{self.corpus}' is neither a local path nor a data set that could be opened: {reason}; "
                "check the name, corpus_config, corpus_split and the network"
            ) from None
        if stream.column_names and (missing := self.columns.missing(stream.column_names)):
            raise UserError(f"corpus '{self.corpus}' {missing}")
        return stream
