# SPDX-License-Identifier: Apache-2.0
"""Data sets on the Hub, streamed in their own order (a shuffled stream cannot be resumed exactly)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ....common.errors import UserError
from ....common.hub_commit import resolve_commit
from ....common.online import hub_or_cache, reason
from ....common.paths import digest
from ...keys.arguments import DataArguments
from .base import Piece, Source
from .records import Columns

# Seconds before each further attempt to read on.
_WAITS = (1, 2, 4, 8, 16, 32)
# Not found, other columns, a damaged file: another attempt would meet the same.
_FOR_GOOD = (FileNotFoundError, ValueError, TypeError, KeyError)
_MARK_EVERY = 1000  # records between two states that are kept


class _Place:
    """How far a stream has been read, and how to come there again: a state of the stream, and records after it."""

    def __init__(self, record: int, state: Any) -> None:
        self.record = record
        self.stream: Any = None
        self._marked, self._mark = record, state  # a place of which the stream's state is known
        self._at = record  # the record that the open stream is at

    def open(self, stream: Any) -> None:
        """Take a fresh stream, and go to the last known place before the one reached."""
        self.stream, self._at = stream, self._marked
        if self._mark is not None:
            stream.load_state_dict(self._mark)

    def passed(self) -> bool:
        """One more record was read; whether it is a new one."""
        self._at += 1
        if self._at <= self.record:
            return False
        self.record = self._at
        if self.record - self._marked >= _MARK_EVERY:
            self._marked, self._mark = self.record, self.stream.state_dict()
        return True

    def state(self) -> dict[str, Any]:
        """The place as plain values."""
        assert self.stream is not None
        return {"record": self.record, "stream": self.stream.state_dict()}


class HubSource(Source):
    """A split of a data set on the Hub; whatever no other kind claims is taken for the name of one."""

    order = 9

    def __init__(self, data: DataArguments, corpus: str, *, split: str) -> None:
        super().__init__(data)
        self.corpus, self.split, self.columns = corpus, split, Columns(data)
        self.commit = resolve_commit(corpus, data.corpus_revision)

    @classmethod
    def claims(cls, corpus: Any) -> bool:
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

    def contents(self) -> dict[Any, str]:
        data = self.data
        mark = ("hub", self.corpus, data.corpus_config, self.split, self.commit or data.corpus_revision)
        return {mark: f"{self.corpus}, {self.split}"}

    def fingerprint(self) -> str:
        data = self.data
        commit = self.commit or data.corpus_revision
        return digest(["hub", self.corpus, data.corpus_config, self.split, commit, self.columns.mark()])

    def describe(self) -> dict[str, Any]:
        data = self.data
        return {
            "kind": "hub",
            "name": self.corpus,
            "config": data.corpus_config,
            "split": self.split,
            "revision": data.corpus_revision,
            "commit": self.commit,
        }

    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        state = state or {"record": 0, "stream": None}
        if "record" not in state:
            state = {"record": 0, "stream": state}  # of an earlier version
        place = _Place(state["record"], state["stream"])
        for record in self._records(place):
            for piece in self.columns.read(record, f"{self.corpus} record {place.record - 1}", self.bad):
                # The state is a nested mapping: taking it for every record would cost more than reading.
                yield piece, place.state

    def _records(self, place: _Place) -> Iterator[Any]:
        """Records from ``place`` on; a stream that breaks off is opened again at the record reached."""
        failures = 0
        while True:
            try:
                place.open(self._open())
                for record in place.stream:
                    if place.passed():
                        failures = 0
                        yield record
                return
            except UserError as error:
                if not place.record:
                    raise
                why: BaseException = error
            except Exception as error:  # the library and its parts raise dozens of kinds
                why = error
            failures += 1
            if failures > len(_WAITS) or isinstance(why, _FOR_GOOD):
                raise UserError(
                    f"corpus '{self.corpus}' broke off after {place.record:,} records: "
                    f"{type(why).__name__}: {' '.join(str(why).split())[:200]}; what was read is kept, and the "
                    "same command goes on from there",
                    exit_code=1,
                ) from None
            time.sleep(_WAITS[failures - 1])

    def _open(self) -> Any:
        from datasets import load_dataset

        data = self.data
        try:
            with hub_or_cache():
                stream = load_dataset(
                    self.corpus,
                    data.corpus_config,
                    split=self.split,
                    revision=self.commit or data.corpus_revision,
                    streaming=True,
                )
        except Exception as error:  # the library raises many kinds, from network to parsing
            raise UserError(
                f"corpus '{self.corpus}' is neither a local path nor a data set that could be opened: {reason(error)}; "
                "check the name, corpus_config, corpus_split and the network"
            ) from None
        if stream.column_names and (missing := self.columns.missing(stream.column_names)):
            raise UserError(f"corpus '{self.corpus}' {missing}")
        return stream
