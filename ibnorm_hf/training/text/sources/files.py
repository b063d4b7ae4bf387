# SPDX-License-Identifier: Apache-2.0
"""Local files: one, or all of a folder, each read by the kind that its ending names."""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import io
import json
import lzma
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, ClassVar

from ....common.errors import UserError, one_line
from ....common.paths import cache_root, digest, file_sha256, write_json
from ...keys.arguments import DataArguments
from ...keys.corpora import is_pattern
from .base import BadRecords, Piece, Source
from .records import MAX_LINE_BYTES, Columns
from .registry import kinds

PACKERS = (".gz", ".xz", ".bz2", ".zst")
REMEMBERED_BYTES = 64 << 20  # files from this size on are not hashed again while they are untouched
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Endings that were always read as they are now; a file of another has a mark of its own.
_FIRST_ENDINGS = (".txt", ".jsonl", ".json", ".parquet")


class FileReader(ABC):
    """One kind of file: a class that a file's ending names.

    A subclass gives ``endings`` and `read`; being in a file of this folder makes it known.
    """

    endings: ClassVar[tuple[str, ...]] = ()
    has_columns: ClassVar[bool] = True
    version: ClassVar[int] = 1  # raised where the same file would give other blocks than before
    cuts_lines: ClassVar[bool] = False  # whether a line that is too long is taken in parts, and not counted as damage

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
            rest = b""
            while raw := handle.readline(MAX_LINE_BYTES):
                number += 1
                if number % 64 == 1:
                    self.consumed = packed.tell()
                if number == 1:
                    raw = self._without_mark(raw)
                raw, rest = rest + raw, b""
                where = f"{self.path}:{number}"
                if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n") and self.cuts_lines:
                    raw, rest = _whole_characters(raw)
                    number -= 1  # the next part is of the same line
                elif len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
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

    def _without_mark(self, raw: bytes) -> bytes:
        """The first line without the byte order mark that some editors put before UTF-8."""
        if raw.startswith(_UTF16):
            raise UserError(f"corpus file {self.path} is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`")
        return raw.removeprefix(codecs.BOM_UTF8)


class Files(Source):
    """A local file, or every readable file of a folder in the order of their names."""

    order = 1

    def __init__(self, data: DataArguments, path: Path) -> None:
        super().__init__(data)
        self.path, self.pattern = path, None
        if is_pattern(str(path)):
            self.path, self.pattern = _fixed(path), str(path)
        self.files, self.left_out = _find_files(self.path, self.pattern)
        self.version = max(reader_of(f).version for f in self.files)
        plain = [f for f in self.files if not reader_of(f).has_columns]
        if plain and data.masked:
            keys = "messages_column is" if data.messages_column else "prompt_column and completion_column are"
            raise UserError(
                f"corpus file {plain[0]} is plain text and has no columns; {keys} for jsonl, parquet and data sets on "
                "the Hub"
            )
        if len(plain) == len(self.files) and data.text_column != "text":
            raise UserError(f"corpus file {plain[0]} is plain text and has no columns; leave text_column out")
        self._reader: FileReader | None = None
        self._before = 0  # bytes of the files before the one that is read
        self._plain = bool(plain)

    @classmethod
    def claims(cls, corpus: Any) -> bool:
        path = Path(os.path.expanduser(corpus))
        looks_local = corpus.startswith((".", "/", "~")) or path.suffix.lower() in (*endings(), *PACKERS)
        return os.path.exists(path) or looks_local or corpus.count("/") > 1 or not corpus or is_pattern(corpus)

    @classmethod
    def open(cls, data: DataArguments, corpus: str) -> Source:
        path = Path(os.path.expanduser(corpus))
        if not os.path.exists(path) and not is_pattern(str(path)):
            raise UserError(f"corpus '{corpus}' does not exist; give a file, a folder, `embedded` or a Hub name")
        return cls(data, path)

    def size_hint(self) -> int:
        return sum(f.stat().st_size for f in self.files)

    def consumed(self) -> int | None:
        return None if self._reader is None else self._before + self._reader.consumed

    def fingerprint(self) -> str:
        # Of a folder with plain text and records, both decide.
        sample = self.data.sample_by if self._plain and self.data.sample_by != "document" else None
        return digest(["files", Columns(self.data).mark(), sample, [_file_mark(f, self.path) for f in self.files]])

    def contents(self) -> dict[Any, str]:
        return {_content(path): str(path) for path in self.files if path.stat().st_size}

    @property
    def has_plain_text(self) -> bool:
        return self._plain

    def describe(self) -> dict[str, Any]:
        path = self.pattern or str(self.path)
        out = {"kind": "files", "path": path, "files": len(self.files), "bytes_on_disk": self.size_hint()}
        if self.left_out:
            names = [str(path.relative_to(self.path)) for path in self.left_out]
            out["left_out"] = {"count": len(names), "first": names[:5]}
        return out

    def pieces(self, state: Any = None) -> Iterator[tuple[Piece, Any]]:
        first, skip = state or (0, 0)
        sizes = [f.stat().st_size for f in self.files]
        for index in range(first, len(self.files)):
            self._before = sum(sizes[:index])
            path = self.files[index]
            done = skip if index == first else 0
            # Bad records before the place that is gone on from have been counted.
            unseen = BadRecords(limit=1 << 62)
            self._reader = reader_of(path)(self.data, path, unseen if done else self.bad, sum(sizes))
            with readable(path):
                for number, piece in enumerate(self._reader.read(), start=1):
                    if number >= done:
                        self._reader.bad = self.bad
                    if number > done:
                        yield piece, (index, number)


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
    """The kind of a file; one of unknown ending is text.

    Raises:
        UserError: it has no known ending, and what is in it is no text.
    """
    known = readers()
    ending = ending_of(path)
    if ending not in known:
        _require_text(path)
    return known.get(ending, known[".txt"])


def _require_text(path: Path) -> None:
    with readable(path), open(path, "rb") as packed, _unpacked(packed, path) as handle:
        head = handle.read(1 << 16)
    if b"\0" in head and not head.startswith(_UTF16):
        raise UserError(f"corpus file {path} is no text; give {', '.join(readers())}, also {', '.join(PACKERS)}")
    try:
        record = json.loads(head.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict):
        raise UserError(f"corpus file {path} holds JSON records; give it the ending .jsonl")


def ending_of(path: Path) -> str:
    """``.jsonl`` of ``a.jsonl``, ``A.JSONL`` and ``a.jsonl.gz``."""
    path = Path(path.name.lower())
    return Path(path.stem).suffix if path.suffix in PACKERS else path.suffix


def _whole_characters(raw: bytes) -> tuple[bytes, bytes]:
    """Bytes up to the last whole UTF-8 character, and the rest."""
    for back in range(1, min(4, len(raw)) + 1):
        if raw[-back] & 0xC0 != 0x80:  # where a character begins
            return (raw[:-back], raw[-back:]) if raw[-back] >= 0xC0 else (raw, b"")
    return raw, b""


def _unpacked(file: IO[bytes], path: Path) -> IO[bytes]:
    packer = path.suffix.lower()
    if packer == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if packer == ".xz":
        return lzma.open(file, "rb")
    if packer == ".bz2":
        return bz2.open(file, "rb")
    if packer == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(file, "zstd"))
    return file


def _find_files(path: Path, pattern: str | None) -> tuple[list[Path], list[Path]]:
    """The files to read, and those of a folder or pattern that are none of ours."""
    if os.path.isfile(path):  # unlike that of a Path, this is False for what can be no path
        return [path], []  # whatever its suffix: an unknown one is read as text
    known = readers()
    hits = [path] if pattern is None else [Path(hit) for hit in glob.glob(pattern, recursive=True)]
    if not hits:
        raise UserError(f"corpus pattern {pattern} matches no file; ** stands for folders of any depth")
    try:
        met = sorted({f for hit in hits for f in (hit.rglob("*") if hit.is_dir() else [hit])})
    except OSError as error:
        raise UserError(f"corpus folder {path} cannot be listed: {one_line(error)}; name its files") from None
    # A link to a folder inside a folder is not followed, and so named.
    lying = [f for f in met if f.is_file() or (f.is_symlink() and f.is_dir() and f not in hits)]
    found = [f for f in lying if ending_of(f) in known and f.name[0] != "." and f.is_file()]
    if not found:
        what = f"folder {path} holds" if pattern is None else f"pattern {pattern} matches"
        raise UserError(f"corpus {what} no {', '.join(known)} file (also {', '.join(PACKERS)})")
    return found, [f for f in lying if f not in set(found)]


def _fixed(pattern: Path) -> Path:
    """The folder that a pattern begins with, as far as nothing in it stands for something else."""
    parts = takewhile(lambda part: glob.escape(_unescaped(part)) == part, pattern.parts[:-1])
    return Path(*map(_unescaped, parts))


def _unescaped(part: str) -> str:
    return re.sub(r"\[([\[*?])\]", r"\1", part)


def _content(path: Path) -> str:
    """SHA-256 of a file; of a large one read once, as long as path, size, time and inode stay as they are."""
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return file_sha256(path)
    seen = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
    record = cache_root() / "contents" / f"{digest(seen)[:24]}.json"
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    checksum = file_sha256(path)
    write_json(record, {"path": seen[0], "sha256": checksum})
    return checksum


def _file_mark(path: Path, root: Path) -> list[Any]:
    """Name and content of a file, and how it is read where an earlier version read it otherwise."""
    mark = [path.name if path == root else str(path.relative_to(root)), _content(path)]
    ending = Path(path.stem).suffix if path.suffix in (".gz", ".xz") else path.suffix
    if ending not in _FIRST_ENDINGS and ending_of(path) in readers():
        mark.append(ending_of(path))
    with readable(path), open(path, "rb") as packed, _unpacked(packed, path) as handle:
        if handle.read(3) == codecs.BOM_UTF8:
            mark.append("without its byte order mark")
    return mark
