# SPDX-License-Identifier: Apache-2.0
"""What a difference is worth: in bits a byte, and in steps of the baseline."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from .rows import Row


def add_effects(
    judged: dict[str, Any], rows: list[Row], steps: dict[float, int], bytes_per_token: float | None
) -> None:
    """Put ``effects``, text by column, beside the numbers of every arm and budget."""
    curve = baseline_curve(rows, judged["baseline"], steps)
    for name, budget in judged["budgets"].items():
        for arm, found in budget["arms"].items():
            effects = {}
            if arm != judged["baseline"] and found["difference"] is not None:
                if bytes_per_token:
                    effects["bits a byte"] = f"{found['difference'] / math.log(2) / bytes_per_token:+.4f}"
                if told := in_steps(found["mean"], curve, steps[float(name)]):
                    effects["steps of the baseline"] = told
            found["effects"] = effects


def baseline_curve(rows: list[Row], baseline: str, steps: dict[float, int]) -> list[tuple[int, float]]:
    """(steps, mean value) of the baseline at each budget, every run decayed to its own end."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row.arm == baseline and row.phase in ("claim", "curve") and math.isfinite(row.value) and row.budget in steps:
            found.setdefault(steps[row.budget], []).append(row.value)
    return sorted((count, statistics.fmean(values)) for count, values in found.items())


def in_steps(value: float, curve: list[tuple[int, float]], own: int) -> str:
    """How many times its own steps the baseline needs to reach ``value``; empty without a curve that falls.

    Between two measured lengths the logarithm of the steps is taken as linear in the value; beyond them nothing is
    extrapolated.
    """
    falling = [point for i, point in enumerate(curve) if i == 0 or point[1] < min(p[1] for p in curve[:i])]
    if len(falling) < 2:
        return ""
    if value > falling[0][1]:
        return f"below {falling[0][0] / own:.2f} x"
    for (a, high), (b, low) in itertools.pairwise(falling):
        if low <= value <= high:
            share = (high - value) / (high - low)
            return f"{math.exp(math.log(a) + share * math.log(b / a)) / own:.2f} x"
    return f"above {falling[-1][0] / own:.2f} x"
