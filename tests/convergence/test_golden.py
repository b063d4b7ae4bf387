# SPDX-License-Identifier: Apache-2.0
"""The tiny recipes still produce the losses they produced when the golden files were written."""

import json
from pathlib import Path

import pytest

from .golden import FOLDER, RECIPES, STEPS, measure


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_golden(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    written = FOLDER / f"{name}.json"
    assert written.is_file(), f"write it by: python -m tests.convergence.golden --write {name}"
    golden = json.loads(written.read_text())
    measured = measure(name, tmp_path)
    assert len(measured["losses"]) == STEPS
    for step, (now, then) in enumerate(zip(measured["losses"], golden["losses"], strict=True), start=1):
        assert now == pytest.approx(then, rel=1e-4), f"first difference at step {step}"
    assert measured["validation_loss"] == pytest.approx(golden["validation_loss"], rel=1e-4)
    assert measured["losses"][-1] < measured["losses"][0] - 1.0
