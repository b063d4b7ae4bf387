# SPDX-License-Identifier: Apache-2.0
"""Where prepared data is kept, and how a file appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .errors import UserError
from .secrets import hide
from .strict_json import dumps


def cache_root() -> Path:
    """``$IBNORM_CACHE`` if set, else ``~/.cache/ibnorm_hf``."""
    return Path(os.environ.get("IBNORM_CACHE") or Path.home() / ".cache" / "ibnorm_hf").expanduser()


def require_writable_cache() -> None:
    """Refuse a cache that cannot be written, before there is anything to write; makes nothing.

    Raises:
        UserError: the folder, or the nearest one above it that is there, is none or may not be written.
    """
    there = root = cache_root()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is no folder" if not there.is_dir() else "may not be written"
        raise UserError(f"the cache {root} cannot be used: {there} {why}; set IBNORM_CACHE to another folder")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk (a rename is durable only after this); no-op where unsupported."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file's content to disk; no-op if it does not exist."""
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader, or a crash, sees the old or the new one, never half.

    What looks like a credential in a text is written as ``<hidden>``.
    """
    raw = hide(content).encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; ValueError for nan and infinity, since they are not JSON."""
    write_atomic(path, dumps(content) + "\n")


def append_json_line(path: Path, content: Any) -> None:
    """Add one JSON object as a line; ValueError for nan and infinity, since they are not JSON."""
    text = hide(dumps(content, indent=None, sort_keys=False))
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(text + "\n")


def digest(content: Any) -> str:
    """Hex SHA-256 of a JSON-able value, in canonical form."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    checksum = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 20):
            checksum.update(piece)
    return checksum.hexdigest()
