# SPDX-License-Identifier: Apache-2.0
"""Local files: one, or all of a folder, each read by the kind that its ending names."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

from ....common.errors import UserError
from ....common.paths import digest
from ...keys.arguments import DataArguments
from .base import BadRecords, Piece, Source
from .records import MAX_LINE_BYTES, Columns
from .registry import kinds

PACKERS = (".gz", ".xz")


class FileReader(ABC):
    """One kind of file: a class that a file's ending names.

    A subclass gives ``endings`` and `read`; being in a file of this folder makes it known.
    """

    endings: ClassVar[tuple[str, ...]] = ()
    has_columns: ClassVar[bool] = True

    def __init__(self, data: DataArguments, path: Path, bad: BadRecords, whole: int) -> None:
        self.path, self.bad, self.columns = path, bad, Columns(data)
        self.whole = whole  # bytes of all files that are read together
        self.consumed = 0  # bytes of this file that have been read

    @abstractmethod
    def read(self) -> Iterator[Piece]:
        """The pieces of the file from its beginning; UserError or OSError if it is damaged."""

    def lines(self) -> Iterator[tuple[int, str]]:
        """Decoded lines with their numbers; bad ones are counted and left out."""
        with open(self.path, "rb") as packed, _unpacked(packed, self.path) as handle:
            number = 0
            while raw := handle.readline(MAX_LINE_BYTES):
                number += 1
                if number % 64 == 1:
                    self.consumed = packed.tell()
                where = f"{self.path}:{number}"
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


class Files(Source):
    """A local file, or every readable file of a folder in the order of their names."""

    order = 1

    def __init__(self, data: DataArguments, path: Path) -> None:
        super().__init__(data)
        self.path = path
        self.files = _find_files(path)
        plain = [f for f in self.files if not reader_of(f).has_columns]
        if plain and data.prompt_column is not None:
            raise UserError(
                f"corpus file {plain[0]} is plain text and has no columns; prompt_column and completion_column are for "
                "jsonl, parquet and data sets on the Hub"
            )
        self._reader: FileReader | None = None
        self._before = 0  # bytes of the files before the one that is read

    @classmethod
    def claims(cls, corpus: str) -> bool:
        path = Path(corpus).expanduser()
        looks_local = corpus.startswith((".", "/", "~")) or path.suffix in (*endings(), *PACKERS)
        return path.exists() or looks_local or corpus.count("/") > 1 or not corpus

    @classmethod
    def open(cls, data: DataArguments, corpus: str) -> Source:
        path = Path(corpus).expanduser()
        if not path.exists():
            raise UserError(f"corpus '{corpus}' does not exist; give a file, a folder, `embedded` or a Hub name")
        return cls(data, path)

    def size_hint(self) -> int:
        return sum(f.stat().st_size for f in self.files)

    def consumed(self) -> int | None:
        return None if self._reader is None else self._before + self._reader.consumed

    def fingerprint(self) -> str:
        return digest(["files", Columns(self.data).mark(), None, [_file_mark(f, self.path) for f in self.files]])

    def describe(self) -> dict[str, Any]:
        return {"kind": "files", "path": str(self.path), "files": len(self.files), "bytes_on_disk": self.size_hint()}

    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        first, skip = state or (0, 0)
        sizes = [f.stat().st_size for f in self.files]
        for index in range(first, len(self.files)):
            self._before = sum(sizes[:index])
            path = self.files[index]
            self._reader = reader_of(path)(self.data, path, self.bad, sum(sizes))
            with readable(path):
                for number, piece in enumerate(self._reader.read()):
                    if index > first or number >= skip:
                        yield piece, (index, number + 1)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tell what breaks off inside the block as damage of the file ``path``."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"corpus file {path} is damaged or unreadable: {error}") from None


def readers() -> dict[str, type[FileReader]]:
    """Kinds of files by their endings."""
    return {ending: kind for kind in kinds(FileReader) for ending in kind.endings}


def endings() -> tuple[str, ...]:
    """All endings that a kind of file is known by, without those of packed files."""
    return tuple(readers())


def reader_of(path: Path) -> type[FileReader]:
    """The kind of a file; one of unknown ending is text."""
    known = readers()
    return known.get(ending_of(path), known[".txt"])


def ending_of(path: Path) -> str:
    """``.jsonl`` of ``a.jsonl`` and of ``a.jsonl.gz``."""
    return Path(path.stem).suffix if path.suffix in PACKERS else path.suffix


def _unpacked(file: IO[bytes], path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if path.suffix == ".xz":
        return lzma.open(file, "rb")
    return file


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]  # whatever its suffix: an unknown one is read as text
    known = readers()
    found = sorted(f for f in path.rglob("*") if f.is_file() and ending_of(f) in known and f.name[0] != ".")
    if not found:
        raise UserError(f"corpus folder {path} holds no {', '.join(known)} file (also {', '.join(PACKERS)})")
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
