# SPDX-License-Identifier: Apache-2.0
"""One seed for whatever a session draws at random; it is printed first, and taken back from ``IBNORM_TEST_SEED``."""

import os
import random
import sys
from typing import Any

import pytest

SEED = "IBNORM_TEST_SEED"
PEER = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # The environment hands it to subprocesses and to workers of the same session.
    seed = os.environ.setdefault(SEED, str(random.SystemRandom().randrange(1 << 31)))
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = seed
    if hasattr(config, "workerinput"):
        # Workers of pytest-xdist share the cores. What they start inherits it; torch, if it is here already, is told.
        os.environ["OMP_NUM_THREADS"] = "1"
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {os.environ[SEED]} (the same again: {SEED}={os.environ[SEED]} pytest ...)"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of pytest-xdist: a worker has ended; the one that ran the peer suite sends what became of it."""
    output = getattr(node, "workeroutput", None) or {}
    node.config.stash.setdefault(PEER, []).extend(output.get("peer", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """`-q` prints no header; a failure must name the seed anyhow."""
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"seed: {SEED}={os.environ[SEED]}")
    if getattr(terminalreporter.config.option, "numprocesses", None):
        for line in terminalreporter.config.stash.get(PEER, []) or ["peer suite NOT run: not selected"]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def session_seed() -> int:
    """What a test that draws at random starts from."""
    return int(os.environ[SEED])
