# SPDX-License-Identifier: Apache-2.0
"""The files of a run that are not checkpoints: what was asked, with what, on which machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ...common import strict_yaml
from ...common.errors import UserError
from ...common.paths import write_atomic, write_json
from ...common.run import CONFIG, VERSION, Run, checkpoints
from ...common.secrets import hide_in_command
from ..keys.identity import differences, identity
from ..keys.launch import strategy
from ..keys.recipe import Recipe, resolved
from .lock import FolderLock
from .manifest import tidy


@contextmanager
def claim(recipe: Recipe) -> Iterator[None]:
    """Make the run folder this recipe's for the length of a ``with`` block, or refuse it.

    Raises:
        UserError: another program is at work in the folder, it belongs to a run of another recipe, it cannot be
            written, or `resume never` meets an existing run.
    """
    folder = Path(str(recipe.run.output_dir))
    lock = FolderLock(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(f"run folder {folder} cannot be written: {error.strerror}; choose another output_dir") from None
    try:
        _require_ours(recipe, folder)
        tidy(folder)
        try:
            write_atomic(folder / CONFIG, strict_yaml.dumps(resolved(recipe)))
        except OSError as error:
            why = f"run folder {folder} cannot be written: {error.strerror}"
            raise UserError(f"{why}; choose another output_dir") from None
        yield
    finally:
        lock.release()


def _require_ours(recipe: Recipe, folder: Path) -> None:
    path = folder / CONFIG
    if not path.is_file():
        # A program that was killed before its first file was whole has left that file's beginning, and nothing else.
        if any(not re.fullmatch(r"\..*\.tmp", found.name) for found in folder.iterdir()):
            raise UserError(f"{folder} is not empty and no run of this program; choose another output_dir")
        return
    try:
        other = identity(Run(folder).config)
    except UserError as error:
        raise UserError(f"{error}; so {folder} cannot be used: choose another output_dir") from None
    changed = differences(other, identity(resolved(recipe)))
    # A run that never logged a step (a misspelt corpus, say) has nothing to lose.
    if changed and (checkpoints(folder) or (folder / "metrics.jsonl").exists() or (folder / "model").exists()):
        raise UserError(f"{folder} holds another run ({'; '.join(changed[:3])}); choose another output_dir")
    if recipe.run.resume == "never" and (checkpoints(folder) or (folder / "model").exists()):
        raise UserError(f"{folder} already holds this run; choose another output_dir, or resume auto")


def write_environment(folder: Path, seed: int, processes: int) -> None:
    """`environment.json`: versions, hardware, strategy, commit, seed, command. No environment variables, no secrets.

    It describes the newest start; those before it, which a resumed run had, stand in ``earlier``, oldest first.
    """
    names = ("ibnorm_hf", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")
    content = {
        "run_version": VERSION,
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in names}},
        "hardware": hardware(),
        "processes": processes,
        "strategy": strategy(),
        "commit": _commit(),
        "seed": seed,
        "command": hide_in_command(sys.argv),
    }
    path = folder / "environment.json"
    try:
        before: dict[str, Any] = dict(Run(folder).environment)
        earlier = before.pop("earlier", [])
        content["earlier"] = [*earlier, before] if before else earlier
    except UserError:
        pass  # the first start, or a file that nobody can read any more
    write_json(path, content)


def hardware() -> dict[str, Any]:
    """Processor, cores, threads, memory (GiB) and accelerators of this machine."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if torch.cuda.is_available():
        facts["accelerators"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout this package runs from, with `-dirty` where tracked files differ; None elsewhere."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # not merely inside somebody else's repository
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
