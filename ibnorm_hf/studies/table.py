# SPDX-License-Identifier: Apache-2.0
"""`ibnorm-hf compare --table`: the statistics of a study for runs that were made elsewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..common.errors import UserError, one_line, printable
from .report import Study, uneven_text, write_report
from .rows import read_table
from .verdict import judge_rows

REFUSED = 3  # exit code of a study that is not ranked


def compare_table(table: str | Path, *, baseline: str, margin: float, out: str | Path) -> dict[str, Any]:
    """Judge the runs of a CSV file (see ``rows.read_table``) and write the report.

    Args:
        table: the file.
        baseline: the arm that the others are held against.
        margin: differences below this, in the unit of the losses, count as none.
        out: folder of the report; made if absent.

    Returns:
        What report.json holds; its ``refused`` is empty where the arms were ranked.

    Raises:
        UserError: the table cannot be read, the baseline is not in it, or the margin is no positive number.
    """
    rows = read_table(table)
    arms = sorted({row.arm for row in rows})
    if baseline not in arms:
        known = one_line(", ".join(arms), 200)
        raise UserError(f"{table}: the baseline {baseline} is not among its arms: {known}")
    if len(arms) < 2:
        raise UserError(f"{table}: {baseline} is its only arm; a comparison needs another one")
    if not (math.isfinite(margin) and margin > 0):
        raise UserError(f"--margin is {margin}; give the difference, above 0, below which two arms count as equal")
    judged = judge_rows(rows, baseline, margin)
    write_report(Study(title=f"Comparison of {len(arms)} arms with {baseline}", judged=judged, rows=rows), Path(out))
    return judged


def lines(judged: dict[str, Any], unit: str = "nats", factor: float = 1.0) -> list[str]:
    """The judgement as lines for a terminal."""
    if judged["refused"]:
        return [
            "not ranked, because the comparison would not be fair:",
            *(f"  {printable(why)}" for why in judged["refused"]),
        ]
    names = {name: printable(name)[:60] for name in judged["arms"]}
    width = max(map(len, names.values()))
    out = [
        f"against {names[judged['baseline']]}, margin {judged['margin']:g} {unit}, 99 % intervals for all arms together"
    ]
    for name, arm in judged["arms"].items():
        if name == judged["baseline"]:
            continue
        low, high = sorted((arm["low"] * factor, arm["high"] * factor))
        more = f"; {arm['seeds_to_decide']} seeds would decide" if arm["seeds_to_decide"] else ""
        more += f"; {arm['diverged']} runs diverged" if arm["diverged"] else ""
        difference = arm["difference"] * factor
        out.append(f"  {names[name]:{width}}  {difference:+.4f} ({low:+.4f} to {high:+.4f})  {arm['verdict']}{more}")
    uneven = [text for found in judged["budgets"].values() for text in uneven_text(found, unit)]
    return [*out, *map(printable, [*uneven, *judged["flips"]])]
