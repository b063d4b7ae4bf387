# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that tell the truth: a list of files with sizes and SHA-256, written last.

A folder without a valid manifest is not a checkpoint. Nothing in a checkpoint is read before its
manifest has been verified, as a flipped bit in a safetensors file would load without a word.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.paths import file_sha256, sync_file, sync_folder, write_json

MANIFEST = "manifest.json"
SAVING = ".saving"  # a checkpoint is written in this folder of the run, then moved into place
_ASIDE = ".old"
_VERSION = 1


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Flush every file of ``folder`` to disk and write its manifest.

    Args:
        folder: a finished folder; files in sub-folders are included.
        facts: plain values to keep beside the list, e.g. the step and the run's identity.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        sync_file(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_json(folder / MANIFEST, {"version": _VERSION, **facts, "files": files})


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest and return the manifest.

    Raises:
        UserError: naming the first file that is missing, changed, or not listed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise UserError(f"checkpoint {folder} is incomplete: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"checkpoint {folder} is damaged: {MANIFEST} is unreadable") from None
    root = folder.resolve()
    for name, (size, checksum) in listed.items():
        path = folder / name
        # A manifest may come from anywhere: its names must stay in their folder, and be names at all.
        if name.startswith("/") or ".." in Path(name).parts or "\0" in name or len(name) > 1024:
            raise UserError(f"checkpoint {folder} is not trusted: {MANIFEST} names {name[:80]!r}, outside the folder")
        if path.is_symlink() or not path.resolve().is_relative_to(root):
            raise UserError(f"checkpoint {folder} is not trusted: {MANIFEST} names {name}, outside the folder")
        if not path.is_file():
            raise UserError(f"checkpoint {folder} is damaged: {name} is missing")
        if path.stat().st_size != size:
            raise UserError(f"checkpoint {folder} is damaged: {name} has {path.stat().st_size} bytes instead of {size}")
        if file_sha256(path) != checksum:
            raise UserError(f"checkpoint {folder} is damaged: {name} does not match its checksum")
    extra = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - set(listed) - {MANIFEST}
    if extra:
        raise UserError(f"checkpoint {folder} is not trusted: {min(extra)} is not in {MANIFEST}")
    return manifest


def publish(staging: Path, final: Path) -> None:
    """Move a sealed folder to its final name in one step, replacing an incomplete one of that name."""
    if final.exists():
        aside = final.with_name(f".{final.name}{_ASIDE}")
        remove_folder(aside)
        os.replace(final, aside)
        os.replace(staging, final)
        remove_folder(aside)
    else:
        os.replace(staging, final)
    sync_folder(final.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a crash half-way leaves no valid checkpoint: its manifest goes first."""
    import shutil

    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def tidy(run: Path) -> None:
    """Remove what a killed program left behind in its own run folder; only whoever holds its lock may call this."""
    for path in run.glob(f".checkpoint-*{_ASIDE}"):
        final = run / path.name[1 : -len(_ASIDE)]
        if final.exists():
            remove_folder(path)
        else:
            os.replace(path, final)  # killed between the two renames of `publish`
    found = checkpoints(run)
    sealed = [step for step, path in found if (path / MANIFEST).is_file()]
    for step, path in found:
        # Killed while an old checkpoint was deleted: its manifest went first.
        if sealed and step < sealed[-1] and step not in sealed:
            remove_folder(path)
    for path in [run / SAVING, *run.glob(".model.*")]:
        if path.is_dir():
            remove_folder(path)
    for path in [*run.glob(".*.tmp"), *run.glob("eval/.*.tmp")]:
        path.unlink(missing_ok=True)


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every ``checkpoint-N`` of a run, oldest first, whether complete or not."""
    found = []
    for path in run.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir() and len(match.group(1)) < 19:
            found.append((int(match.group(1)), path))
    return sorted(found)


def newest_complete(run: Path, say: Any = print) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose manifest verifies; says a line for each newer one passed over."""
    for _, path in reversed(checkpoints(run)):
        try:
            return path, verify(path)
        except UserError as error:
            say(f"resume: passing over {path.name}: {error}")
    return None


def keep_last(run: Path, count: int | None) -> None:
    """Delete all but the newest ``count`` checkpoints that carry a manifest; None or 0 keeps all."""
    if count:
        complete = [path for _, path in checkpoints(run) if (path / MANIFEST).is_file()]
        for path in complete[:-count]:
            remove_folder(path)
