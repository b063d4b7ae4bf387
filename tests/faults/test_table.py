# SPDX-License-Identifier: Apache-2.0
"""The table of faults beside the benchmarks is what the result files say."""

import json
import re
import shutil
from pathlib import Path

from .table import RESULTS, render

README = RESULTS.parent / "README.md"


def test_readme_shows_the_results():
    found = re.search(r"<!-- faults -->\n(.*?)\n<!-- /faults -->", README.read_text(), re.DOTALL)
    assert found.group(1).strip() == render()


def test_nothing_was_lost():
    for name in ("faults.json", "kills.json"):
        content = json.loads((RESULTS / name).read_text())
        entries = content["faults"].values() if "faults" in content else [content]
        assert all(entry["lost"] == 0 and entry["tried"] == entry["survived"] > 0 for entry in entries), name
    assert json.loads((RESULTS / "kills.json").read_text())["tried"] >= 200


def test_the_soak_was_long_flat_and_exact():
    soak = json.loads((RESULTS / "soak.json").read_text())
    assert soak["whole"]["minutes"] >= 30 and soak["resumed"] == 3 and soak["equal_bit_for_bit"]
    assert abs(soak["whole"]["memory"]["mib_per_hour"]) < 0.05 * soak["whole"]["memory"]["median_mib"]


def test_the_table_sums_up(tmp_path: Path):
    faults = {
        "a": {"tried": 3, "survived": 2, "lost": 1},
        "SIGKILL at a random moment": {"tried": 20, "survived": 20, "lost": 0},
    }
    (tmp_path / "faults.json").write_text(json.dumps({"faults": faults}))
    (tmp_path / "kills.json").write_text(json.dumps({"tried": 200, "survived": 200, "lost": 0, "in_a_row": 4}))
    shutil.copy(RESULTS / "soak.json", tmp_path)
    text = render(tmp_path)
    assert "| a | 3 | 2 | 1 |" in text and "up to 4 in a row | 200 | 200 | 0 |" in text
    assert "| **all** | **203** | **202** | **1** |\n" in text
