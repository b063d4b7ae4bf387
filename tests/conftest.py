# SPDX-License-Identifier: Apache-2.0
"""One seed for whatever a session draws at random, and the last words on the peer suite.

The seed is printed first, and taken back from ``IBNORM_TEST_SEED``. What became of the peer suite is printed last,
above all when it was not run.
"""

import gc
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

SEED = "IBNORM_TEST_SEED"
PEER = pytest.StashKey[list[str]]()
TESTS = Path(__file__).parent
LONGEST = (
    "peer/test_peer.py",
    "studies/test_kills.py",
    "studies/test_slurm.py",
    "recipes/test_launcher.py",
    "recipes/test_readme_commands.py",
    "evaluation/test_harness.py",
    "hub/test_elsewhere.py",
    "training/test_two_machines.py",
    "modeling/test_models.py",
    "modeling/test_functional.py",
    "training/test_finetune.py",
    "training/test_processes.py",
    "training/test_stale_view.py",
    "evaluation/test_real_weights.py",
    "vision/test_train_vision.py",
    "hub/test_push.py",
    "faults/test_kills.py",
    "faults/test_machine.py",
    "studies/test_compare.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[PEER] = []
    # The environment hands it to subprocesses and to workers of the same session.
    seed = os.environ.setdefault(SEED, str(random.SystemRandom().randrange(1 << 31)))
    config.option.loadscopereorder = False  # of pytest-xdist: files as they are ordered below, not by count of tests
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = seed
    if hasattr(config, "workerinput"):
        # Workers of pytest-xdist share the cores. What they start inherits it; torch, if it is here already, is told.
        os.environ["OMP_NUM_THREADS"] = "1"
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that workers that are handed whole files end together."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(TESTS).as_posix(), len(order)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: accelerate collects garbage at every training's start, and need not walk it."""
    gc.collect()
    gc.freeze()


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {os.environ[SEED]} (the same again: {SEED}={os.environ[SEED]} pytest ...)"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of pytest-xdist: a worker has ended; the one that ran the peer suite sends what became of it."""
    output = getattr(node, "workeroutput", None) or {}
    node.config.stash[PEER].extend(output.get("peer", []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In such a worker: send it."""
    gc.unfreeze()  # libraries complain at the end of objects that were never freed
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peer"] = session.config.stash[PEER]


@pytest.fixture(scope="session")
def verdict(pytestconfig: pytest.Config) -> list[str]:
    """Lines on the peer suite, to print when the session has ended."""
    return pytestconfig.stash[PEER]


def pytest_unconfigure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or config.option.collectonly or hasattr(config, "workerinput"):
        return
    suite = Path(__file__).parent / "peer"
    places = [Path(word.partition("::")[0]).resolve() for word in config.args]
    asked = any(suite.is_relative_to(place) or place.is_relative_to(suite) for place in places)
    for line in config.stash[PEER] or ["peer suite NOT run: not selected"] * asked:
        terminal.write_line(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """`-q` prints no header; a failure must name the seed anyhow."""
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"seed: {SEED}={os.environ[SEED]}")


@pytest.fixture(scope="session")
def session_seed() -> int:
    """What a test that draws at random starts from."""
    return int(os.environ[SEED])
