# SPDX-License-Identifier: Apache-2.0
"""``checksums.json``: size and SHA-256 of every file, since a flipped bit in a weight file loads without a word."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj

from ..common.errors import UserError
from .folders import PICKLES, list_files, pickle_reason, read_json

CHECKSUMS = "checksums.json"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as handle:
        return str(sha_fileobj(handle).hex())


def write_checksums(folder: Path, made_with: dict[str, str]) -> None:
    """List every file of ``folder``; ``made_with`` are the versions that wrote it. No time, no path: the same export
    made twice is the same bytes."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in list_files(folder)
        if name != CHECKSUMS
    }
    text = json.dumps({"version": 1, "made_with": made_with, "files": files}, indent=2, sort_keys=True)
    (folder / CHECKSUMS).write_text(text + "\n", encoding="utf-8")


def read_listing(path: Path) -> dict[str, tuple[int, str]]:
    """name -> (bytes, sha256) of a ``checksums.json`` or of a checkpoint's ``manifest.json``, which share a form.

    Raises:
        UserError: the file is absent or damaged, or names something outside its folder.
    """
    content = read_json(path)
    try:
        listed = {str(n): (int(e["bytes"]), str(e["sha256"])) for n, e in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged: its list of files is unreadable") from None
    for name in listed:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise UserError(f"{path} is not trusted: it names {name}, outside its folder")
    return listed


def problems(folder: Path, listing: str = CHECKSUMS) -> list[str]:
    """One phrase, beginning with the file's name, for each file that is missing, damaged, or not listed.

    Raises:
        UserError: the listing itself is absent or damaged.
    """
    listed = read_listing(folder / listing)
    found = []
    for name, (size, checksum) in sorted(listed.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif sha256(path) != checksum:
            found.append(f"{name} does not match its checksum")
    for name in list_files(folder):
        if name not in listed and name != listing:
            found.append(f"{name} {pickle_reason()}" if name.endswith(PICKLES) else f"{name} is not in {listing}")
    return found


def made_with(folder: Path) -> dict[str, Any]:
    """The versions that wrote an export; empty where it does not say."""
    versions = read_json(folder / CHECKSUMS).get("made_with")
    return versions if isinstance(versions, dict) else {}
