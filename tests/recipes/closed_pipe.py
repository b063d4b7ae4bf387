# SPDX-License-Identifier: Apache-2.0
"""Commands of `ibnorm-hf` whose reader is gone, at the cost of one import: `... closed_pipe.py < JOBS > ENDS`

JOBS is a list of lists of words, as JSON; ENDS a list of [exit code, what was said on the standard error]. Each command
is a fork, and ends as any program does: by the interpreter's own end, which flushes what is left.
"""

import atexit
import gc
import json
import os
import runpy
import sys
import tempfile

from ..forks import get_ready


def be(words: list[str], said: int) -> None:
    """Be the command, with a standard output that nobody reads."""
    atexit.unregister(gc.unfreeze)  # its end would walk all that was imported before the fork
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(said, 2)
    sys.argv = ["ibnorm-hf", *words]
    runpy.run_module("ibnorm_hf.cli", run_name="__main__")


def main() -> None:
    """Run the commands one after another."""
    get_ready()
    ends = []
    for words in json.load(sys.stdin):
        with tempfile.TemporaryFile() as said:
            if (process := os.fork()) == 0:
                be(words, said.fileno())
                return
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            said.seek(0)
            text = said.read().decode(errors="replace")
            ends.append([code, text.partition("nanobind: leaked")[0]])  # of what stayed frozen
    json.dump(ends, sys.stdout)


if __name__ == "__main__":
    main()
