# SPDX-License-Identifier: Apache-2.0
"""The table of faults, made of the files that the suite and the long round of kills wrote.

IBNORM_FAULTS_RESULTS=recipes/benchmarks/results/faults.json pytest -m faults
python -m tests.faults.kills --count 200 --json recipes/benchmarks/results/kills.json
python -m tests.faults.table
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "recipes" / "benchmarks" / "results"


def render(results: Path = RESULTS) -> str:
    """The table in markdown, one row a fault, with a last row of sums."""
    faults = json.loads((results / "faults.json").read_text())["faults"]
    kills = json.loads((results / "kills.json").read_text())
    rows = {kind: (entry["tried"], entry["survived"], entry["lost"]) for kind, entry in faults.items()}
    rows[f"SIGKILL at a random moment, up to {kills['in_a_row']} in a row"] = (
        kills["tried"],
        kills["survived"],
        kills["lost"],
    )
    rows = {kind: row for kind, row in rows.items() if kind != "SIGKILL at a random moment"}
    lines = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    lines += [
        f"| {kind} | {' | '.join(map(str, row))} |" for kind, row in sorted(rows.items(), key=lambda i: i[0].lower())
    ]
    sums = [sum(column) for column in zip(*rows.values(), strict=True)]
    lines.append(f"| **all** | **{sums[0]}** | **{sums[1]}** | **{sums[2]}** |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(render())
