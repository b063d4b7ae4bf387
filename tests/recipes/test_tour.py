# SPDX-License-Identifier: Apache-2.0
"""The notebook `recipes/tour.ipynb`, cell after cell as a kernel would run it."""

import json
from pathlib import Path

NOTEBOOK = json.loads((Path(__file__).parents[2] / "recipes" / "tour.ipynb").read_text())


def test_every_cell_runs_and_shows_what_it_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"tour.ipynb, code cell {number}", "exec"), names)
    shown = capsys.readouterr().out
    assert "restored, they are the same: True" in shown and "5 norms are now ibnorm-l" in shown
    assert "step 20/20" in shown and "nats, shuffled" in shown and "ibnorm-l minus rmsnorm: " in shown
    for norm_type, run in names["runs"].items():
        assert run.validation["step"] == 20 and (Path(run.folder) / "model").is_dir()
        assert names["measured"][norm_type]["loss"] > 0


def test_it_is_kept_without_results():
    """Numbers of one machine would stand there as if they were everybody's."""
    assert NOTEBOOK["nbformat"] == 4
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in NOTEBOOK["cells"])
    titles = [line for c in NOTEBOOK["cells"] for line in c["source"] if line.startswith("## ")]
    assert [t.strip("# \n").lower() for t in titles] == ["create", "replace", "train", "analyze", "compare"]
