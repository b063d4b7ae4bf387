# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run goes on from, and whether it is one of this run."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ..keys.identity import differences, identity, run_id
from ..keys.recipe import Recipe, resolved
from .manifest import checkpoints, newest_complete, verify


def checkpoint_to_resume(recipe: Recipe, folder: Path, say: Any) -> tuple[Path, dict[str, Any]] | None:
    """(folder, manifest) of the checkpoint that ``resume`` means, verified; None: begin at step 0.

    Raises:
        UserError: it does not exist, is damaged, or belongs to another recipe.
    """
    wanted = recipe.run.resume
    if wanted == "never":
        return None
    if wanted == "auto":
        found = newest_complete(folder, say)
        if found is None and checkpoints(folder):
            say("resume: no complete checkpoint, starting from step 0")
    else:
        path = Path(wanted)
        if not path.is_dir():
            raise UserError(f"resume: checkpoint {path} does not exist; give auto, never or a checkpoint-N folder")
        found = path, verify(path)
    if found is not None:
        require_same_recipe(recipe, *found)
    return found


def require_same_recipe(recipe: Recipe, checkpoint: Path, manifest: dict[str, Any]) -> None:
    """Raise UserError unless a checkpoint's manifest says that it is a step of this recipe."""
    step = manifest.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= recipe.run.max_steps:
        raise UserError(f"checkpoint {checkpoint} is damaged: its manifest names no step of this run")
    if manifest.get("run_id") != run_id(recipe):
        theirs = manifest.get("recipe")
        changed = differences(theirs, identity(resolved(recipe))) if isinstance(theirs, dict) else []
        if theirs and not changed:
            return  # written when some key, at its default here, did not exist yet
        why = f" ({'; '.join(changed[:3])})" if changed else ""
        raise UserError(
            f"checkpoint {checkpoint} belongs to another recipe{why}; choose another output_dir or checkpoint"
        )


def require_same_data(
    checkpoint: tuple[Path, dict[str, Any]] | None, marks: dict[str, str], mine: dict[str, str]
) -> None:
    """Refuse other samples than those of the main process (``marks``), or than those of the checkpoint.

    The same recipe may name a corpus or a tokenizer that has changed since, or that differs from machine to machine.
    """
    if mine != marks:
        raise UserError(
            f"{socket.gethostname()} has another {_changed(marks, mine)} than the main process: bring the same data to "
            "all machines, or clear its cache"
        )
    if checkpoint is not None and checkpoint[1].get("fingerprints") != mine:
        theirs = checkpoint[1].get("fingerprints")
        raise UserError(
            f"checkpoint {checkpoint[0]} was trained with another {_changed(theirs, mine)} than the recipe names now; "
            "bring the old one back, or choose another output_dir"
        )


def _changed(theirs: Any, mine: dict[str, str]) -> str:
    parts = theirs if isinstance(theirs, dict) else {}
    changed = [name for name in ("tokenizer", "source", *mine) if parts.get(name) != mine.get(name)]
    return {"source": "corpus", "blocks": "packed data"}.get(changed[0], changed[0]) if changed else "packed data"
