# SPDX-License-Identifier: Apache-2.0
"""One decision for all processes of a run, and one error: the main process decides, everybody verifies what it reads.

Machines may have disks of their own: what the main process alone has is sent. All functions are collective.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ...common.errors import UserError
from ...common.paths import cache_root
from .manifest import MANIFEST, remove_folder, verify

T = TypeVar("T")
_PIECE = 1 << 24  # bytes sent at once


def agreed(make: Callable[[], T], *, main_only: bool = False) -> T:
    """What every process makes, or the main one for all; if one of them fails, all of them do.

    Raises:
        UserError: that of the first process that failed. An error that no user caused is raised as it is where it
            happened, and named elsewhere.
    """
    state = PartialState()
    value: Any = None
    error: Exception | None = None
    if not main_only or state.is_main_process:
        try:
            value = make()
        except Exception as failure:  # told to the others, then raised
            error = failure
    if state.num_processes > 1:
        told = None if error is None else _told(error, state.process_index)
        first = next((t for t in gather_object([told]) if t is not None), None)
        if first is not None:
            raise (
                error
                if error is not None and not isinstance(error, UserError)
                else UserError(first[0], exit_code=first[1])
            )
        return broadcast_object_list([value])[0] if main_only else value
    if error is not None:
        raise error
    return value


def _told(error: Exception, rank: int) -> tuple[str, int]:
    if isinstance(error, UserError):
        return str(error), error.exit_code
    return f"process {rank} on {socket.gethostname()} failed: {type(error).__name__}: {error}"[:500], 1


def machine() -> int:
    """A number for this process's machine: the rank of its first process."""
    state = PartialState()
    return state.process_index - state.local_process_index


def on_this_machine(checkpoint: tuple[Path, dict[str, Any]]) -> Path:
    """The folder of the main process's checkpoint on this machine, verified once a machine; sent where it is absent.

    A folder that was sent lies under the cache, and whoever asked removes it by ``forget``.
    """
    path, manifest = checkpoint
    state = PartialState()
    if state.num_processes == 1:
        return path
    first = state.is_local_main_process
    local = path
    if first and not state.is_main_process:
        try:
            # The same manifest, or another checkpoint lies under that name.
            if verify(path) != manifest:
                raise UserError("another one")
        except UserError:
            local = cache_root() / "received" / f"{os.getpid()}-{path.name}"
    wanted = any(gather_object([first and local != path]))
    if wanted:
        _send(path, manifest, local if local != path else None)
        agreed(lambda: verify(local) if local != path else None)
    where = dict(pair for pair in gather_object([(machine(), local)] if first else [(machine(), None)]) if pair[1])
    return where[machine()]


def _send(source: Path, manifest: dict[str, Any], target: Path | None) -> None:
    """Copy a sealed folder from the main process to whoever gives a ``target``."""
    main = PartialState().is_main_process
    for name in [*manifest["files"], MANIFEST]:
        size = broadcast_object_list([(source / name).stat().st_size if main else None])[0]
        with ExitStack() as files:
            handle = files.enter_context(open(source / name, "rb")) if main else None
            out = None
            if target is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                out = files.enter_context(open(target / name, "wb"))
            for start in range(0, size, _PIECE):
                piece = broadcast_object_list([handle.read(min(_PIECE, size - start)) if handle else None])[0]
                if out is not None:
                    out.write(piece)


def forget(folder: Path) -> None:
    """Remove a folder that was sent; leaves any other alone."""
    if folder.parent == cache_root() / "received" and PartialState().is_local_main_process:
        remove_folder(folder)


def collect(folder: Path, names: str) -> None:
    """Bring the files of a pattern that other machines wrote under the same name to the main process's folder."""
    state = PartialState()
    if len(set(gather_object([machine()]))) == 1:
        return
    mine = [(p.name, p.read_bytes()) for p in sorted(folder.glob(names))] if state.is_local_main_process else []
    for name, content in gather_object(mine):
        if state.is_main_process and not (folder / name).exists():
            (folder / name).write_bytes(content)
