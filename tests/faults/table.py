# SPDX-License-Identifier: Apache-2.0
"""The table of faults, made of the files that the suite, the long round of kills and the soak wrote.

IBNORM_FAULTS_RESULTS=recipes/benchmarks/results/faults.json pytest -m faults
python -m tests.faults.kills --count 200 --json recipes/benchmarks/results/kills.json
python recipes/benchmarks/soak.py
python -m tests.faults.table        # writes it between the markers of README.md
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
    return "\n".join([*lines, "", soak_sentence(json.loads((results / "soak.json").read_text()))])


def soak_sentence(soak: dict[str, Any]) -> str:
    """What the long run in pieces said of memory and of its last weights."""
    whole = soak["whole"]
    memory = whole["memory"]
    low, high = memory["interval_95"]
    pieces = ", ".join(piece["ended_by"] for piece in soak["pieces"])
    equal = "equal bit for bit" if soak["equal_bit_for_bit"] else f"NOT equal ({'; '.join(soak['differences'])})"
    return (
        f"A soak (`{soak['command']}`): {soak['recipe']} for {soak['steps']:,} steps and {whole['minutes']:g} minutes, "
        f"resident memory {memory['median_mib']:g} MiB in the middle and {memory['peak_mib']:g} MiB at most, with a "
        f"slope of {memory['mib_per_hour']:g} MiB an hour (95 %: {low:g} to {high:g}). Beside it the same run in "
        f"pieces, ended by {pieces}: weights, moments, generators and log are {equal}."
    )


if __name__ == "__main__":
    readme = RESULTS.parent / "README.md"
    pattern = re.compile(r"<!-- faults -->.*?<!-- /faults -->", re.DOTALL)
    block = f"<!-- faults -->\n{render()}\n<!-- /faults -->"
    readme.write_text(pattern.sub(lambda _: block, readme.read_text()))
