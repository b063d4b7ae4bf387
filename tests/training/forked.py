# SPDX-License-Identifier: Apache-2.0
"""Several processes of one program, as a launcher starts them, at the cost of one import for all tests of a session.

What torchrun starts anew, and so imports torch and transformers once a process, is forked here from a process that has
imported them: the same environment of a launch, the same program, the same words. torchrun itself is started by the
tests of launchers.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from ..forks import get_ready

ROOT = Path(__file__).parents[2]
LIMIT_S = 300


def launch(count: int, program: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in ``count`` processes of this one's environment and more; returns once all have ended.

    Raises:
        TimeoutError: they take longer than ``LIMIT_S``; all are killed.
    """
    asked = {"count": count, "program": str(program), "words": [str(word) for word in words]}
    with tempfile.TemporaryDirectory() as name:
        out, err = (Path(name) / kind for kind in ("out", "err"))
        more = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
        asked |= {"environment": {**os.environ, **more}, "out": str(out), "err": str(err)}
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], LIMIT_S)[0]:
            _server.cache_clear()
            os.killpg(server.pid, signal.SIGKILL)
            raise TimeoutError(f"{program} did not end:\n{err.read_text()[-2000:]}")
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess([str(program)], code, out.read_text(), err.read_text())


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that has imported; it ends with its standard input."""
    command = [sys.executable, "-m", "tests.training.forked"]
    server = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    atexit.register(server.communicate)
    return server


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


def children(count: int, program: str, words: list[str]) -> int:
    """Fork, and wait; the first that fails ends the others. Returns its exit code."""
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


def main() -> None:
    """Make the launches that are asked for, a line of JSON each; answers each with its exit code."""
    get_ready()
    for line in sys.stdin:
        asked = json.loads(line)
        if (process := os.fork()) == 0:
            for number, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
            os.environ.clear()
            os.environ.update(asked["environment"])
            os._exit(children(asked["count"], asked["program"], asked["words"]))
        print(abs(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])), flush=True)


if __name__ == "__main__":
    main()
