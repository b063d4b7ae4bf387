# SPDX-License-Identifier: Apache-2.0
"""What killed preparations left in the cache, and nobody has come back for."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

from ...common.paths import cache_root
from .packing import Say

ABANDONED_DAYS = 14  # a preparation that was killed goes on from its `.partial` folder until then


def tidy_cache(say: Say) -> None:
    """Delete unfinished blocks and tokenizers that nothing has touched for ``ABANDONED_DAYS``.

    One that another process holds the lock of stays. Lock files stay too: they are empty, and deleting one that
    another process is about to take would let two in.
    """
    root = cache_root()
    for path in root.glob("held/*.lock"):  # each was of one launch, which removes it at its end
        if _abandoned(path):
            path.unlink(missing_ok=True)
    for folder in [*root.glob("blocks/.*.partial"), *root.glob("tokenizers/.*")]:
        if not folder.is_dir() or folder.is_symlink() or not _abandoned(folder):
            continue
        lock = folder.with_name(folder.name[1:].partition(".")[0] + ".lock")
        try:
            with FileLock(str(lock), timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue
        say(f"data: deleted {folder}, which a killed preparation left more than {ABANDONED_DAYS} days ago")


def _abandoned(folder: Path) -> bool:
    try:
        inside = folder.iterdir() if folder.is_dir() else ()
        newest = max(path.stat().st_mtime for path in (folder, *inside))
    except OSError:
        return False  # another process has just moved it
    return time.time() - newest > 86400 * ABANDONED_DAYS
