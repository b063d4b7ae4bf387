# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that tell the truth: a list of files with sizes and SHA-256, written last.

A folder without a valid manifest is not a checkpoint. Nothing in a checkpoint is read before its
manifest has been verified, as a flipped bit in a safetensors file would load without a word.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.listing import MANIFEST, problems, read_listing, write_listing
from ...common.paths import sync_folder
from ...common.run import checkpoints

SAVING = ".saving"  # a checkpoint is written in this folder of the run, then moved into place
_ASIDE = ".old"
STOPPED_EARLY = "stopped_early"  # in manifests, in metrics.jsonl and in eval/validation.json


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Flush every file of a finished ``folder`` to disk and write its manifest.

    Args:
        facts: plain values to keep beside the list, e.g. the step and the run's identity.
    """
    rights = 0o666 & ~_umask()
    for path in folder.rglob("*.safetensors"):
        path.chmod(rights)  # the library writes 0600 beside files that everybody of the group may read
    write_listing(folder, MANIFEST, facts)


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest and return the manifest.

    Raises:
        UserError: naming the first file that is missing, changed, or not listed.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"checkpoint {folder} is incomplete: it has no {MANIFEST}")
    try:
        manifest, _ = read_listing(folder / MANIFEST)
        wrong = next(problems(folder, MANIFEST), None)
    except UserError as error:
        raise UserError(f"checkpoint {folder} is not trusted: {error}") from None
    if wrong is not None:
        raise UserError(f"checkpoint {folder} is damaged: {wrong}")
    return manifest


def ends_run(manifest: dict[str, Any], steps: int) -> bool:
    """Whether a checkpoint or `model/` with this manifest is the end of a run of ``steps`` steps."""
    return manifest.get("step") == steps or isinstance(manifest.get(STOPPED_EARLY), dict)


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


def newest_complete(run: Path, say: Any = print) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose manifest verifies; says a line for each newer one passed over."""
    for _, path in reversed(checkpoints(run)):
        try:
            return path, verify(path)
        except UserError as error:
            say(f"resume: passing over {path.name}: {error}")
    return None


def keep_last(run: Path, count: int | None, *, written: int | None = None, never: Path | None = None) -> None:
    """Delete all but the last ``count`` checkpoints that carry a manifest; None or 0 keeps all.

    Args:
        written: step of the checkpoint just written, the last whatever its number: later steps, which a run that went
            back to an earlier one left behind, go first.
        never: a checkpoint that stays, that which the run was resumed from.
    """
    if not count:
        return
    sealed = [(step, path) for step, path in checkpoints(run) if (path / MANIFEST).is_file()]
    if written is not None:
        sealed.sort(key=lambda pair: (pair[0] <= written, pair[0]))
    for step, path in sealed[:-count]:
        if step != written and not (never is not None and never.exists() and path.samefile(never)):
            remove_folder(path)
