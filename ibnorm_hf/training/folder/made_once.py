# SPDX-License-Identifier: Apache-2.0
"""What is made once a disk: the main process makes it and judges it, those that share its disk wait and are told."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from accelerate import PartialState
from filelock import FileLock

from ...common.errors import UserError
from ...common.paths import cache_root
from .together import agreed

T = TypeVar("T")
PATIENCE_S = 90.0  # network file systems keep what they know of a folder for up to a minute


def made_once(make: Callable[[], T], facts: Callable[[T], Any], take: Callable[[Any], T]) -> T:
    """Make something on disk, once for all processes that see the same disk; collective.

    A file system may show the other processes an old state of what the main one has made, so they look at no mark of
    it: they take what they are told. They wait at a lock, for hours if they must, where a collective would time out.

    Args:
        make: finds or makes it; run by the main process, and by those with a disk of their own.
        facts: what the others need to know of it; it is pickled.
        take: reads it, of what was told.

    Raises:
        UserError: that of the first process that failed, at all of them.
    """
    state = PartialState()
    if state.num_processes == 1:
        return make()
    # A name that nobody has asked for yet is answered by the disk, and not from what a process remembers of it.
    name = agreed(lambda: uuid.uuid4().hex, main_only=True)
    path = cache_root() / "held" / f"{name}.lock"
    lock = FileLock(str(path))
    with ExitStack() as held:

        def hold() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock)

        agreed(hold, main_only=True)
        makes = state.is_main_process or not path.exists()
        value, error = _tried(make) if makes else (None, None)
    if not makes:
        with lock:
            pass
    agreed(lambda: _raised(error))
    if state.is_main_process:
        path.unlink(missing_ok=True)
    content = agreed(lambda: facts(value) if value is not None else None, main_only=True)
    return agreed(lambda: take(content) if value is None else value)


def _tried(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:  # told to the others, then raised
        return None, error


def _raised(error: Exception | None) -> None:
    if error is not None:
        raise error


def in_time(read: Callable[[], T]) -> T:
    """What ``read`` returns as soon as it finds what it was told is there; its UserError after ``PATIENCE_S``."""
    limit = time.monotonic() + PATIENCE_S
    while True:
        try:
            return read()
        except UserError:
            if time.monotonic() > limit:
                raise
            time.sleep(1)
