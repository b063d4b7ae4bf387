# SPDX-License-Identifier: Apache-2.0
"""What a user must read, said so that it is read: once, and again below the traceback of a launcher."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

# What `accelerate launch` and torchrun are called on a command line, as programs, as modules and as files.
_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
_MODULES = ("accelerate.commands.", "torch.distributed.run", "torch.distributed.launch")
_FILES = ("accelerate/commands/", "torch/distributed/run.py", "torch/distributed/launch.py")
_AGAIN = """
import os, select, sys
launcher, limit, mark, text = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
ended = select.select([launcher], [], [], limit)[0]
os.unlink(mark)
if ended:
    os.write(2, text.encode() + b"\\n")
"""
_LIMIT_S = 120.0  # a launcher that goes on, as with --max_restarts, has nothing to add


class Parser(argparse.ArgumentParser):
    """A parser of the command line whose errors are read under a launcher too."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message; exit with 2."""
        self.print_usage(sys.stderr)
        complain(f"{self.prog}: error: {message}")
        sys.exit(2)


def complain(text: str) -> None:
    """Print ``text`` to the standard error, and once more when a launcher that waits for this process has ended.

    A launcher answers any exit code but 0 with a traceback of its own, pages below what this process had to say. The
    processes of one launcher repeat one text. Repeats on Linux alone, where the end of a process can be waited for.
    """
    print(text, file=sys.stderr, flush=True)
    launcher = os.getppid()
    if not hasattr(os, "pidfd_open") or not _launches(launcher):
        return
    import subprocess
    import tempfile

    mark = Path(tempfile.gettempdir()) / f"ibnorm-hf-{os.getuid()}-{launcher}"
    try:
        waited_for = os.pidfd_open(launcher)
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
        # In a session of its own: the launcher ends the group of this process.
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _AGAIN, str(waited_for), str(_LIMIT_S), str(mark), text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(waited_for,),
            start_new_session=True,
        )
    except OSError:  # another process of this launcher has it, or no process can be started: it was said once
        return


def _launches(pid: int) -> bool:
    """Whether the command line of a process is that of a launcher."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:6]
    except OSError:
        return False
    return any(
        Path(word).name in _LAUNCHERS or word.startswith(_MODULES) or any(part in word for part in _FILES)
        for word in words
    )
