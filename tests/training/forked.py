# SPDX-License-Identifier: Apache-2.0
"""Several processes of one program at the cost of one import: `python -m tests.training.forked COUNT PROGRAM WORD ...`

What torchrun starts anew, and so imports torch and transformers once a process, is forked here from a process that has
imported them: the same environment of a launch, the same program, the same words. torchrun itself is started by the
tests of launchers.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import traceback

from ..forks import get_ready


def child(rank: int, count: int, port: int, program: str, words: list[str]) -> int:
    """Be process ``rank`` of a launch; returns the program's exit code."""
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launch.items()})
    sys.argv = [program, *words]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> int:
    """Fork, and wait; the first that fails ends the others. Returns its exit code."""
    get_ready()
    count, program, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
    running = set()
    for rank in range(count):
        if (process := os.fork()) == 0:
            code = child(rank, count, port, program, words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        running.add(process)
    failed = 0
    while running:
        process, status = os.wait()
        running.discard(process)
        if status and not failed:
            failed = abs(os.waitstatus_to_exitcode(status))
            for other in running:
                os.kill(other, signal.SIGTERM)
    return failed


if __name__ == "__main__":
    sys.exit(main())
