# SPDX-License-Identifier: Apache-2.0
"""Seeds each test and writes what became of it to the file named by PEER_OUTCOMES."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_outcomes: list[dict[str, Any]] = []


@pytest.fixture(autouse=True)
def _seed() -> None:
    from transformers import set_seed

    from ..test_modeling_common import global_rng

    # A failure must be repeatable, and both arms see the same inputs.
    set_seed(42)
    global_rng.seed(42)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    reason = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed or report.skipped:
        reason = report.longreprtext
    context = getattr(report, "context", None)  # a subtest; pytest reports these one by one
    subtest = f"{context.msg or ''}{dict(context.kwargs) or ''}" if context else ""
    _outcomes.append(
        {
            "test": report.nodeid.split("::", 1)[1],
            "subtest": subtest,
            "outcome": report.outcome,
            "reason": reason,
            "seconds": round(report.duration, 3),
        }
    )


def pytest_sessionfinish() -> None:
    Path(os.environ["PEER_OUTCOMES"]).write_text(json.dumps(_outcomes, indent=1))
