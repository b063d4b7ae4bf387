# SPDX-License-Identifier: Apache-2.0
"""The tiny recipes still produce the losses they produced when the golden files were written."""

import json
from pathlib import Path

import pytest

from .golden import FOLDER, RECIPES, STEPS, measure

WRITTEN = {name: FOLDER / f"{name}.json" for name in RECIPES if (FOLDER / f"{name}.json").is_file()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", WRITTEN)
def test_losses_are_golden(name: str, tmp_path: Path):
    golden = json.loads(WRITTEN[name].read_text())
    measured = measure(name, tmp_path)
    assert len(measured["losses"]) == STEPS
    for step, (now, then) in enumerate(zip(measured["losses"], golden["losses"], strict=True), start=1):
        assert now == pytest.approx(then, rel=1e-4), f"first difference at step {step}"
    assert measured["validation_loss"] == pytest.approx(golden["validation_loss"], rel=1e-4)
    assert measured["losses"][-1] < measured["losses"][0] - 1.0


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(WRITTEN)))
def test_a_new_family_learns(name: str, tmp_path: Path):
    """Until its golden losses are written, by ``python -m tests.convergence.golden --write NAME``."""
    losses = measure(name, tmp_path)["losses"]
    assert len(losses) == STEPS and losses[-1] < losses[0] - 1.0


def test_no_golden_losses_are_of_a_recipe_that_is_gone():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(WRITTEN) and {"llama-tiny", "gpt2-tiny"} <= set(WRITTEN)
