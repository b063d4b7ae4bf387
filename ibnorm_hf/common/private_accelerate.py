# SPDX-License-Identifier: Apache-2.0
"""The undocumented parts of accelerate that a job over several devices relies on; hooks of a model are in
``modeling/private_accelerate.py``.
"""

from __future__ import annotations

from .private import Parts

LAUNCHING = Parts(
    "accelerate",
    "1.10 to 1.15",
    ("accelerate.commands.launch:launch_command", "accelerate.commands.launch:launch_command_parser"),
)


def launch(words: list[str]) -> None:
    """What ``accelerate launch WORDS`` does, in this process.

    Raises:
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: a process failed.
    """
    LAUNCHING.require()
    from accelerate.commands.launch import launch_command, launch_command_parser

    launch_command(launch_command_parser().parse_args(words))
