# SPDX-License-Identifier: Apache-2.0
"""What a run folder that was found holds: a finished run, one to go on with, or parts that do not belong together."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.listing import MANIFEST
from ...common.run import EVAL, LOSS_CURVE, MODEL, Run, checkpoints, is_run, verify_model
from ...common.strict_json import read_object
from ..keys.identity import differences, identity
from ..keys.recipe import Recipe, resolved
from .manifest import ends_run, newest_complete
from .resume import require_same_recipe


def finished_end(recipe: Recipe, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The end of this recipe's finished run: its last checkpoint or else `model/`, with manifest; None if not finished.

    Finished is a run with `model/`, whole and of the last step, and its validation. Reads only. A folder of another
    recipe is left to `claim`, which refuses it, and what ``resume`` names otherwise than by ``auto`` to who named it.

    Raises:
        UserError: `model/` is damaged or of another run and cannot be made anew, or checkpoints are gone.
    """
    if recipe.run.resume != "auto" or not is_run(folder):
        return None
    try:
        asked = Run(folder).config
        if differences(identity(asked), identity(resolved(recipe))):
            return None
    except UserError:
        return None
    newest = newest_complete(folder, _silent) if checkpoints(folder) else None
    if not (folder / MODEL).is_dir():
        if not checkpoints(folder):
            _require_no_lost_steps(folder, asked)
        return None
    why, manifest = _unfinished(recipe, folder)
    last = newest is not None and ends_run(newest[1], recipe.run.max_steps)
    if why is None:
        return newest if last else (folder / MODEL, manifest)
    if last:
        return None  # the last lines of the job make the rest anew
    if newest is not None:
        raise UserError(f"{why}; remove {folder / MODEL} to go on from {newest[0].name}, or choose another output_dir")
    raise UserError(f"{why}; bring it back, or choose another output_dir")


def _silent(text: str) -> None:
    pass


def _unfinished(recipe: Recipe, folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Why `model/` is not the end of this run, or None; and its manifest."""
    model, manifest = folder / MODEL, {}
    try:
        verify_model(model)
        manifest = read_object(model / MANIFEST)
        require_same_recipe(recipe, model, manifest)
    except UserError as error:
        return str(error), manifest
    if not ends_run(manifest, recipe.run.max_steps):
        return f"{model} is of step {manifest.get('step')}, not of the last", manifest
    if not (folder / EVAL / "validation.json").is_file():
        return f"{folder} holds a model but no {EVAL}/validation.json", manifest
    return None, manifest


def _require_no_lost_steps(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse a folder whose log goes on after a checkpoint that is no longer there: it would be written over."""
    logged = max((line.get("step", 0) for line in Run(folder).metrics), default=0)
    if asked.get("save_strategy", "steps") == "no":
        return
    every, steps = asked.get("save_steps", 500), asked.get("max_steps", 0)
    first = math.ceil(every * steps) if every < 1 else int(every)
    if logged > max(1, first):
        raise UserError(
            f"{folder} has logged step {logged}, but its checkpoints are gone: bring them back, choose another "
            "output_dir, or remove the folder to train it from step 0"
        )


def set_aside(folder: Path, say: Any) -> None:
    """Move the results of a run that goes back to an earlier step out of the way: they are not those of the new end."""
    old = [name for name in (MODEL, EVAL, LOSS_CURVE) if (folder / name).exists()]
    if MODEL not in old:
        return
    number = 1
    while (folder / f"before-{number}").exists():
        number += 1
    aside = folder / f"before-{number}"
    aside.mkdir()
    for name in old:
        os.replace(folder / name, aside / name)
    say(f"resume: {', '.join(old)} of the run's earlier end are in {aside} now")
