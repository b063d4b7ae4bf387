# SPDX-License-Identifier: Apache-2.0
"""Says at the very end of a run what became of the peer suite, above all when it was not run."""

from __future__ import annotations

import pytest

# Not for this process: they run inside the unpacked source distribution.
collect_ignore = ["suite", "stubs"]

VERDICT = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash.setdefault(VERDICT, [])


@pytest.fixture(scope="session")
def verdict(pytestconfig: pytest.Config) -> list[str]:
    """Lines to print when the run has ended."""
    return pytestconfig.stash[VERDICT]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under pytest-xdist, send the lines to the process that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["peer"] = list(session.config.stash.get(VERDICT, []))


def pytest_unconfigure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or config.option.collectonly or getattr(config.option, "numprocesses", None):
        return  # under pytest-xdist the process that prints has not run the suite: see the conftest of tests
    for line in config.stash.get(VERDICT, []) or ["peer suite NOT run: not selected"]:
        terminal.write_line(line)
