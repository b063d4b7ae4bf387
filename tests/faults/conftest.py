# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the fault suite, and its tally: ``IBNORM_FAULTS_RESULTS=FILE pytest -m faults`` writes it down."""

import json
import os
import platform
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ibnorm_hf.training import job
from ibnorm_hf.training.keys.recipe import load_recipe
from recipes.benchmarks.stamp import stamped
from tests.training.conftest import TINY, cache, make_recipe, one_thread, recipe_file

__all__ = ["cache", "make_recipe", "one_thread", "recipe_file"]  # fixtures

_tally: dict[str, dict[str, int]] = {}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A finished run of six steps with checkpoints 3 and 6, made once; no test may change it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    job.pretrain(load_recipe(folder / "tiny.yaml", ["--output_dir", str(folder / "run")]))
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, where `make_recipe` expects it, as if killed after its last checkpoint.

    With `model/`, it would be finished, and nobody would read its checkpoints any more.
    """
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(copy / "model")
    return copy


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    marker = item.get_closest_marker("faults")
    if marker is not None and marker.args and (report.when == "call" or report.failed):
        tried = int(dict(item.user_properties).get("tried", 1))
        entry = _tally.setdefault(marker.args[0], {"tried": 0, "survived": 0})
        if not report.skipped:
            entry["tried"] += tried
            entry["survived"] += tried if report.passed else 0
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get("IBNORM_FAULTS_RESULTS")
    if target and _tally:
        content = {
            "command": f"IBNORM_FAULTS_RESULTS={target} pytest -m faults",
            "python": platform.python_version(),
            "cpu_cores": os.cpu_count(),
            "faults": {kind: {**e, "lost": e["tried"] - e["survived"]} for kind, e in sorted(_tally.items())},
        }
        content = stamped("recipes/benchmarks/results/faults.json", content)
        Path(target).write_text(json.dumps(content, indent=2) + "\n")
