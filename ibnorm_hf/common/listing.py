# SPDX-License-Identifier: Apache-2.0
"""The files of a folder: which they are, with sizes and SHA-256, and whether they still are what was listed.

A flipped bit in a weight file loads without a word, so a folder that is kept or given away has a list: a checkpoint and
a run's model ``manifest.json``, an export ``checksums.json``. Only regular files below the folder itself
count: a link could lead to anything on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import UserError, one_line
from .paths import file_sha256, sync_file, write_json
from .strict_json import read_object

MANIFEST = "manifest.json"
CHECKSUMS = "checksums.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# What download tools leave beside the files of a repository.
_FOREIGN = (".gitattributes", ".cache/")


def require_regular(path: Path, root: Path) -> Path:
    """``path``, which must be a regular file of folder ``root``: no link, nor reached through one below ``root``.

    Raises:
        UserError: it is missing, a link, or lies elsewhere.
    """
    place = root
    for part in path.relative_to(root).parts:
        place = place / part
        if place.is_symlink():
            raise UserError(f"{path} is a link or lies behind one, and is not followed; put the file itself there")
    if not path.is_file():
        raise UserError(f"{path} is missing or no file; check the path, or make it again")
    return path


def list_files(folder: Path) -> list[str]:
    """Relative paths of all files, with forward slashes, sorted; what download tools add is left out.

    Raises:
        UserError: something below the folder is a link, or neither a file nor a folder.
    """
    found: list[str] = []
    _walk(folder, "", found)
    return sorted(found)


def _walk(folder: Path, prefix: str, found: list[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if name.startswith(_FOREIGN) or f"{name}/" in _FOREIGN:
                continue
            if entry.is_symlink():
                raise UserError(f"{entry.path} is a link, and links are not followed; put the file itself there")
            if entry.is_dir():
                _walk(Path(entry.path), f"{name}/", found)
            elif entry.is_file():
                found.append(name)
            else:
                raise UserError(f"{entry.path} is neither a file nor a folder; remove it")


def write_listing(folder: Path, name: str, facts: dict[str, Any]) -> None:
    """Flush every file of ``folder`` to disk, and list them in ``folder/name`` with bytes and SHA-256.

    Args:
        folder: a finished folder; files in sub-folders are included.
        name: MANIFEST or CHECKSUMS.
        facts: plain values to keep beside the list.
    """
    files = {}
    for file in list_files(folder):
        if file != name:
            path = folder / file
            sync_file(path)
            files[file] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_json(folder / name, {"version": 1, **facts, "files": files})


def read_listing(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """The content of a list, and name -> (bytes, sha256).

    Raises:
        UserError: the file is absent or damaged, or names something outside its folder.
    """
    content = read_object(require_regular(path, path.parent) if os.path.lexists(path) else path)
    try:
        listed = {str(n): (int(e["bytes"]), str(e["sha256"])) for n, e in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged: its list of files is unreadable; make the folder again") from None
    for name in listed:
        # A list may come from anywhere: its names must stay in their folder, and be names at all.
        parts = PurePosixPath(name).parts
        odd = not parts or ".." in parts or name.startswith("/") or "\\" in name or "\0" in name or len(name) > 1024
        if odd:
            raise UserError(f"{path} is not trusted: it names {one_line(name, 80)}, outside its folder")
    return content, listed


def problems(folder: Path, listing: str) -> Iterator[str]:
    """One phrase, beginning with the file's name, for each file that is missing, damaged, or not listed.

    Raises:
        UserError: the list itself is absent, damaged or not to be trusted, or the folder holds a link.
    """
    _, listed = read_listing(folder / listing)
    there = dict.fromkeys(list_files(folder))
    for name, (size, checksum) in listed.items():
        path = folder / name
        if name not in there:
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size} bytes instead of {size}"
        elif file_sha256(path) != checksum:
            yield f"{name} does not match its checksum"
    for name in there:
        if name not in listed and name != listing:
            reason = f", and {pickle_reason()}" if name.endswith(PICKLES) else ""
            yield f"{name} is not in {listing}{reason}"


def pickle_reason() -> str:
    """Why a pickle is refused, to follow its name."""
    return (
        "is refused: it is a pickle, which can run any code while it is loaded; where you trust its origin, load it "
        "with transformers and save_pretrained it as safetensors"
    )
