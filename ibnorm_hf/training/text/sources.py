# SPDX-License-Identifier: Apache-2.0
"""Where text comes from: the embedded corpus, local files, data sets on the Hub.

A source yields `Piece`s in a fixed order, and can tell (`state`) and be told (`restore`) how far it
has been read, so that a preparation that was killed goes on where its last shard ended.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ...common.errors import UserError
from ...common.paths import digest
from ..keys.arguments import DataArguments
from .embedded import embedded_corpus

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
_RECORDS = (".jsonl", ".json", ".parquet")
_PACKERS = (".gz", ".xz")
MAX_LINE_BYTES = 16 << 20  # a longer line is damage, not text
MAX_PIECE_CHARS = 1 << 16  # long documents are read in pieces of about this size


@dataclass
class Piece:
    """A stretch of text; ``ends_document`` tells whether the next piece belongs to another document.

    ``prompt`` is text before it that is read but not predicted.
    """

    text: str
    ends_document: bool
    prompt: str | None = None

    @property
    def texts(self) -> list[str]:
        """What is to be tokenized, each by itself: the prompt, if there is one, and the text."""
        return [self.text] if self.prompt is None else [self.prompt, self.text]

    @property
    def chars(self) -> int:
        """Characters of all `texts`."""
        return sum(map(len, self.texts))


@dataclass
class BadRecords:
    """Unreadable records: counted by reason, the first few named, and an end to patience."""

    limit: int
    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, where: str, reason: str) -> None:
        """Count one record; raises UserError once more than ``limit`` were bad."""
        self.counts[reason] += 1
        if len(self.first) < 5:
            self.first.append(f"{where} ({reason})")
        if sum(self.counts.values()) > self.limit:
            raise UserError(
                f"corpus: more than max_bad_records = {self.limit} unreadable records, first {', '.join(self.first)}; "
                "repair the corpus or raise max_bad_records"
            )

    def describe(self) -> dict[str, Any]:
        """Counts by reason and the first few places, for data.json."""
        return {"count": sum(self.counts.values()), "by_reason": dict(self.counts), "first": list(self.first)}


class Source(ABC):
    """An ordered, restartable stream of text pieces."""

    def __init__(self, data: DataArguments) -> None:
        self.data = data
        self.bad = BadRecords(data.max_bad_records)
        self.columns = text_columns(data)

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that changes when the text may have changed."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the corpus is, for data.json."""

    @abstractmethod
    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        """Yield (piece, state after it), beginning after ``state``."""

    def size_hint(self) -> int | None:
        """Bytes of text, roughly; None if unknown."""
        return None

    def consumed(self) -> int | None:
        """How many of the bytes of `size_hint` have been read; None if unknown."""
        return None

    def column_mark(self) -> Any:
        """What a fingerprint holds of the columns."""
        names = list(self.columns.values())
        return names if len(names) > 1 else names[0]

    def missing_column(self, names: Sequence[str]) -> str | None:
        """Which columns ``names`` lack, as the rest of a sentence; None if they are all there."""
        for key, column in self.columns.items():
            if column not in names:
                return f"has no column '{column}', only {', '.join(names[:8])}; set {key}"
        return None

    def read_record(self, record: Any, where: str) -> Iterator[Piece]:
        """The piece of a record, which maps columns to values; a bad record is counted and yields none."""
        values: list[Any] = [record.get(c) if isinstance(record, dict) else None for c in self.columns.values()]
        prompt, text = (None, values[0]) if len(values) == 1 else values
        fault = record_fault(text) if len(values) == 1 else prompt_fault(prompt, text)
        if fault:
            self.bad.add(where, fault)
        else:
            yield Piece(text, True, prompt)

    def bad_state(self) -> dict[str, Any]:
        """The counts of bad records as plain values."""
        return {"counts": dict(self.bad.counts), "first": list(self.bad.first)}

    def restore_bad(self, state: dict[str, Any]) -> None:
        """Set the counts of bad records to those of an interrupted preparation."""
        self.bad.counts, self.bad.first = Counter(state["counts"]), list(state["first"])


class FileSource(Source):
    """Local text, JSON lines or parquet files, plain or packed by gzip or xz."""

    def __init__(self, data: DataArguments, path: Path, *, separator: str | None = None) -> None:
        super().__init__(data)
        self.path = path
        self.separator = separator  # a line that ends a document inside a text file
        self.files = _find_files(path)
        plain = [f for f in self.files if _kind(f) not in _RECORDS]
        if plain and data.prompt_column is not None:
            raise UserError(
                f"corpus file {plain[0]} is plain text and has no columns; prompt_column and completion_column are for "
                "jsonl, parquet and data sets on the Hub"
            )
        self._consumed: int | None = None
        self._before = 0  # bytes of the files before the one that is read

    def size_hint(self) -> int | None:
        return sum(f.stat().st_size for f in self.files)

    def consumed(self) -> int | None:
        return self._consumed

    def fingerprint(self) -> str:
        return digest(["files", self.column_mark(), self.separator, [_file_mark(f, self.path) for f in self.files]])

    def describe(self) -> dict[str, Any]:
        return {"kind": "files", "path": str(self.path), "files": len(self.files), "bytes_on_disk": self.size_hint()}

    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        first, skip = state or (0, 0)
        limit = min(MAX_PIECE_CHARS, max(256, (self.size_hint() or 0) // 64))
        sizes = [f.stat().st_size for f in self.files]
        for index in range(first, len(self.files)):
            self._before = sum(sizes[:index])
            for number, piece in enumerate(self._read(self.files[index], limit)):
                if index > first or number >= skip:
                    yield piece, (index, number + 1)

    def _read(self, path: Path, limit: int) -> Iterator[Piece]:
        kind = _kind(path)
        try:
            if kind == ".parquet":
                yield from self._read_parquet(path)
            elif kind in (".jsonl", ".json"):
                yield from self._read_jsonl(path)
            else:
                yield from self._read_text(path, limit)
        except (OSError, EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise UserError(f"corpus file {path} is damaged or unreadable: {error}") from None

    def _read_text(self, path: Path, limit: int) -> Iterator[Piece]:
        """A text file is one document (or several, parted by ``separator`` lines), cut at line ends."""
        held: list[str] = []
        size = 0
        for _, line in self._lines(path):
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

    def _read_jsonl(self, path: Path) -> Iterator[Piece]:
        for number, line in self._lines(path):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                self.bad.add(where, "malformed JSON")
                continue
            yield from self.read_record(record, where)

    def _read_parquet(self, path: Path) -> Iterator[Piece]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
            if missing := self.missing_column(file.schema_arrow.names):
                raise UserError(f"corpus file {path} {missing}")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=list(self.columns.values())):
                for record in batch.to_pylist():
                    number += 1
                    yield from self.read_record(record, f"{path}:{number}")
        except pa.ArrowException as error:
            raise UserError(f"corpus file {path} is damaged or unreadable: {error}") from None

    def _lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Decoded lines with their numbers; bad ones are counted and left out."""
        with open(path, "rb") as packed, _unpacked(packed, path) as handle:
            number = 0
            while raw := handle.readline(MAX_LINE_BYTES):
                number += 1
                if number % 64 == 1:
                    self._consumed = self._before + packed.tell()
                where = f"{path}:{number}"
                if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    while raw and not raw.endswith(b"\n"):
                        raw = handle.readline(MAX_LINE_BYTES)
                    self.bad.add(where, f"line over {MAX_LINE_BYTES >> 20} MiB")
                    continue
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError:
                    self.bad.add(where, "not UTF-8")
                    continue
                if "\0" in line:
                    self.bad.add(where, "binary")
                    continue
                yield number, line.replace("\r\n", "\n")


class HubSource(Source):
    """A data set on the Hub, streamed in its own order (a shuffled stream cannot be resumed exactly)."""

    def __init__(self, data: DataArguments, *, split: str) -> None:
        super().__init__(data)
        self.split = split

    def fingerprint(self) -> str:
        data = self.data
        return digest(["hub", data.corpus, data.corpus_config, self.split, data.corpus_revision, self.column_mark()])

    def describe(self) -> dict[str, Any]:
        data = self.data
        return {
            "kind": "hub",
            "name": data.corpus,
            "config": data.corpus_config,
            "split": self.split,
            "revision": data.corpus_revision,
        }

    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        stream = self._open()
        if state is not None:
            stream.load_state_dict(state)
        for number, record in enumerate(stream):
            for piece in self.read_record(record, f"{self.data.corpus} record {number}"):
                # The state is a nested mapping: taking it for every record would cost more than reading.
                yield piece, stream.state_dict

    def _open(self) -> Any:
        from datasets import load_dataset

        data = self.data
        try:
            stream = load_dataset(
                data.corpus, data.corpus_config, split=self.split, revision=data.corpus_revision, streaming=True
            )
        except Exception as error:  # the library raises many kinds, from network to parsing
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"corpus '{data.corpus}' is neither a local path nor a data set that could be opened: {reason}; "
                "check the name, corpus_config, corpus_split and the network"
            ) from None
        if stream.column_names and (missing := self.missing_column(stream.column_names)):
            raise UserError(f"corpus '{data.corpus}' {missing}")
        return stream


def text_columns(data: DataArguments) -> dict[str, str]:
    """Columns that hold the text of a record, by the keys that name them: one, or prompt and completion."""
    if data.prompt_column is None or data.completion_column is None:
        return {"text_column": data.text_column}
    return {"prompt_column": data.prompt_column, "completion_column": data.completion_column}


def record_fault(text: Any) -> str | None:
    """Why a record is no usable text, or None."""
    if text is None:
        return "no text"
    if not isinstance(text, str):
        return "text is not a string"
    if not text.strip():
        return "empty"
    if len(text) > MAX_LINE_BYTES:
        return f"over {MAX_LINE_BYTES >> 20} MiB"
    if "\0" in text:
        return "binary"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "lone surrogate"  # JSON can spell what no text contains
    return None


def prompt_fault(prompt: Any, completion: Any) -> str | None:
    """Why a prompt and its completion are no usable record, or None. A prompt may be empty, a completion not."""
    fault = record_fault(prompt)
    if fault and fault != "empty":
        return f"prompt: {fault}"
    fault = record_fault(completion)
    return f"completion: {fault}" if fault else None


def open_source(data: DataArguments) -> Source:
    """The source that ``corpus`` names: `embedded`, an existing path, or a data set on the Hub."""
    if data.corpus == "embedded":
        return FileSource(data, embedded_corpus(), separator="\f")
    path = Path(data.corpus).expanduser()
    if path.exists():
        return FileSource(data, path)
    looks_local = data.corpus.startswith((".", "/", "~")) or path.suffix in SUFFIXES + _PACKERS
    if looks_local or data.corpus.count("/") > 1 or not data.corpus:
        raise UserError(f"corpus '{data.corpus}' does not exist; give a file, a folder, `embedded` or a Hub name")
    return HubSource(data, split=data.corpus_split)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _PACKERS else path.suffix


def _unpacked(file: IO[bytes], path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if path.suffix == ".xz":
        return lzma.open(file, "rb")
    return file


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]  # whatever its suffix: an unknown one is read as text
    found = sorted(f for f in path.rglob("*") if f.is_file() and _kind(f) in SUFFIXES and f.name[0] != ".")
    if not found:
        raise UserError(f"corpus folder {path} holds no {', '.join(SUFFIXES)} file (also .gz, .xz)")
    return found


def _file_mark(path: Path, root: Path) -> list[Any]:
    """Name and content of a file; of a large one its size, time and both ends, to stay quick."""
    status = path.stat()
    checksum = hashlib.sha256()
    with open(path, "rb") as handle:
        if status.st_size <= 256 << 20:
            while chunk := handle.read(1 << 20):
                checksum.update(chunk)
            return [path.name if path == root else str(path.relative_to(root)), checksum.hexdigest()]
        checksum.update(handle.read(1 << 20))
        handle.seek(-(1 << 20), 2)
        checksum.update(handle.read())
    name = path.name if path == root else str(path.relative_to(root))
    return [name, status.st_size, status.st_mtime_ns, checksum.hexdigest()]
