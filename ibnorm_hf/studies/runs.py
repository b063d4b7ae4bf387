# SPDX-License-Identifier: Apache-2.0
"""Runs of a study on disk. Their state follows from their folders alone: no database, no lock that goes stale."""

from __future__ import annotations

import contextlib
import glob
import io
import math
import os
import shutil
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from ..common.errors import Diverged, UserError
from ..common.paths import digest, write_json
from ..common.run import CONFIG, METRICS, Run

State = Literal["planned", "running", "done", "diverged", "crashed"]
DIVERGED = "diverged.json"
LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """All that a process needs to make a run: plain values."""

    recipe: str
    words: list[str]
    folder: str
    keep_model: bool = False
    threads: int = 1


# Where a run lies and where its samples are read from: the samples themselves count, by their own fingerprints.
PLACES = ("output_dir", "run_name", "logging_dir", "corpus", "images", "tokenizer")


def run_key(resolved: dict[str, Any], data: Any, code: str) -> str:
    """The id of a run: a digest of its resolved recipe, its data's fingerprints and the code. No place counts."""
    return digest({"recipe": without_places(resolved), "data": data, "code": code})[:12]


def without_places(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe but for what may differ from machine to machine."""
    return {key: value for key, value in resolved.items() if key not in PLACES}


def state(folder: Path) -> State:
    """Planned (no folder), running (a process holds the folder), done, diverged, or crashed (anything else)."""
    from ..training.folder.lock import is_held

    if not folder.is_dir():
        return "planned"
    if is_held(folder):
        return "running"
    if (folder / DIVERGED).is_file():
        return "diverged"
    return "done" if _is_whole(folder) else "crashed"


def _is_whole(folder: Path) -> bool:
    """Whether what a report reads of a finished run is there, and can be read."""
    try:
        return bool(Run(folder).validation) and all((folder / name).is_file() for name in (CONFIG, METRICS))
    except UserError:
        return False


def execute(job: Job) -> None:
    """Make one run, from where it stands, in this process. A run that is done, or another's now, is left alone.

    Raises:
        UserError: the run cannot be made; a run that diverged is recorded and is no error.
    """
    import torch

    from ..training.folder.lock import InUse
    from ..training.job import pretrain
    from ..training.keys.recipe import load_recipe

    torch.set_num_threads(job.threads)
    folder = Path(job.folder)
    if state(folder) in ("done", "diverged", "running"):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = [*job.words, f"--output_dir={folder}"]
    with _into(folder.with_name(f"{folder.name}.{LOG}")):
        try:
            recipe = load_recipe(job.recipe, words)
            _set_aside(recipe, folder)
            pretrain(recipe)
        except Diverged as error:
            write_json(folder / DIVERGED, {"reason": str(error)})
        except InUse:
            return  # somebody makes it, or looked at it in this very moment: the study looks again
    tidy(folder, job.keep_model)


def _set_aside(recipe: Any, folder: Path) -> None:
    """Move a run away that cannot go on, since files of it are lost or damaged; nothing of it is deleted.

    Raises:
        InUse: another process holds the folder.
    """
    from ..training.folder.lock import FolderLock
    from ..training.folder.state import finished_end

    if not folder.is_dir():
        return
    lock = FolderLock(folder)
    lock.acquire()
    try:
        lost = (folder / METRICS).is_file() and not (folder / CONFIG).is_file()
        try:
            # What is not whole is no end, and it is no beginning either where its weights are gone.
            lost = lost or (finished_end(recipe, folder) is not None and not _is_whole(folder))
        except UserError:
            lost = True
        if lost:
            count = sum(1 for _ in folder.parent.glob(f"{glob.escape(folder.name)}.damaged-*")) + 1
            folder.rename(folder.with_name(f"{folder.name}.damaged-{count}"))
    finally:
        lock.release()


def tidy(folder: Path, keep_model: bool) -> None:
    """Leave of a finished run what a report reads; nobody reads its checkpoints. A kill can come before this."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    if not keep_model:
        for path in (folder / "model").glob("*.safetensors"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _into(path: Path) -> Any:
    """Send what a run prints to a file beside its folder."""
    with open(path, "a", encoding="utf-8") as handle:
        text = io.TextIOWrapper(handle.buffer, encoding="utf-8", line_buffering=True, write_through=True)
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                yield
            finally:
                text.flush()
                text.detach()


def begin(environment: dict[str, str]) -> None:
    """Begin a process that makes runs: with the study's environment, and an end when the study ends, however it does.

    A fork of a server has the environment that the server was started with, and the server for a parent.
    """
    os.environ.clear()
    os.environ.update(environment)
    if (study := parent_process()) is not None:
        threading.Thread(target=_end_with, args=(study.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # nobody would read the result


def measured(folder: Path, key: str) -> float | None:
    """The metric of a finished run; infinite where it diverged or is no number, None where it is not finished."""
    found = state(folder)
    if found == "diverged":
        return math.inf
    if found != "done":
        return None
    value: Any = Run(folder).validation.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.inf
    return float(value)
