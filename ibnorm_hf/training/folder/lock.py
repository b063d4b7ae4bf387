# SPDX-License-Identifier: Apache-2.0
"""One program a run folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ...common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class InUse(UserError):
    """Another program holds the folder."""


class FolderLock:
    """Exclusive use of a folder between `acquire` and `release`.

    The lock is the operating system's, on the folder itself: no file is left behind, and a killed program
    cannot leave it locked. Where a file system knows no such locks, there is none. (``filelock`` locks no folder, and
    leaves its file there after each run, so that a manifest and an upload would have to know of it.)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises InUse if another process holds it."""
        if fcntl is None:
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InUse(
                    f"{self.folder} is in use by another run; wait for its end, or choose another output_dir"
                ) from None
            return
        self._descriptor = descriptor
        # A forked worker would keep the lock after the death of its parent.
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Give it back; no-op without it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder now; False where there is no folder."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(descriptor)
    return False
