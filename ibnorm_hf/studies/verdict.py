# SPDX-License-Identifier: Apache-2.0
"""From the rows of a study to its numbers: the same road for runs made here and for a table made elsewhere."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from .fairness import chosen_rates, finite_or_worst, unfairness
from .rows import Row, in_order
from .statistics import LEVEL, Comparison, compare, pooled_error, undecided, uneven_errors


def judge_rows(
    rows: list[Row], baseline: str, margin: float, *, tuned: bool = True, refused: list[str] | None = None
) -> dict[str, Any]:
    """Everything that a report says, as plain values.

    Args:
        rows: all finished runs; the order does not matter.
        baseline: the arm that the others are held against.
        margin: differences below this, in the unit of the values, count as none.
        tuned: False for a declared ablation at one rate.
        refused: further sentences against a ranking, found elsewhere.

    Returns:
        ``baseline``, ``margin``, ``level``, ``arms`` (at the largest budget; see ``_arm``), ``budgets`` (the same by
        budget), ``flips`` (sentences), ``refused`` (sentences; where there is one, no arm is better or worse).

    Raises:
        ValueError: the baseline has no row, or the margin is no positive number.
    """
    arms = sorted({row.arm for row in rows})
    if baseline not in arms:
        raise ValueError(f"the baseline {baseline} is not among the arms: {', '.join(arms)}")
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin must be a number above 0, not {margin}")
    refused = list(dict.fromkeys([*(refused or []), *unfairness(rows, baseline, tuned=tuned)]))
    budgets = {
        budget: _at_budget(rows, budget, baseline, margin, ranked=not refused)
        for budget in sorted({row.budget for row in rows if row.phase == "claim"})
    }
    largest = max(budgets, default=None)
    return {
        "baseline": baseline,
        "margin": margin,
        "level": LEVEL,
        "arms": budgets[largest]["arms"] if largest is not None else {},
        "budgets": {f"{budget:g}": found for budget, found in budgets.items()},
        "flips": [] if refused else flips(budgets),
        "refused": refused,
    }


def _at_budget(rows: list[Row], budget: float, baseline: str, margin: float, *, ranked: bool) -> dict[str, Any]:
    """Error, seeds and arms of one budget. Only seeds that every arm has are compared, and they are listed."""
    values = finite_or_worst(rows)
    best = chosen_rates(rows)
    claims: dict[str, dict[int, float]] = {}
    rates: dict[str, Any] = {}
    diverged: dict[str, int] = {}
    claimed = in_order([row for row in rows if (row.budget, row.phase) == (budget, "claim")])
    there = {(row.arm, row.seed, row.rate) for row in claimed}
    for row in claimed:
        rate = rates.setdefault(row.arm, best.get((row.arm, budget), row.rate))
        if row.rate != rate and (row.arm, row.seed, rate) in there:
            continue
        claims.setdefault(row.arm, {})[row.seed] = values[row.arm, row.budget, row.rate, row.seed]
        diverged[row.arm] = diverged.get(row.arm, 0) + math.isinf(row.value)
    seeds = sorted(set.intersection(*(set(found) for found in claims.values()))) if claims else []
    table = {arm: [found[seed] for seed in seeds] for arm, found in claims.items()}
    usable = len(seeds) >= 2 and baseline in table and all(math.isfinite(v) for row in table.values() for v in row)
    apart = frozenset(arm for arm, count in diverged.items() if count)
    found = compare(table, baseline, margin=margin, apart=apart) if usable else {}
    pooled = {arm: row for arm, row in table.items() if arm not in apart - {baseline}} if usable else {}
    errors = np.asarray(list(pooled.values()))
    return {
        "seeds": seeds,
        "error": pooled_error(errors)[0] if pooled else None,
        "uneven": _uneven(list(pooled), errors) if pooled else None,
        "arms": {arm: _arm(found.get(arm), claims[arm], rates[arm], diverged[arm], ranked) for arm in sorted(claims)},
    }


def _uneven(arms: list[str], table: np.ndarray) -> dict[str, Any] | None:
    """The arms of least and of most error, where one pooled error describes neither; None where it describes all."""
    found, errors = uneven_errors(table)
    least, most = ({"arm": arms[i], "error": float(errors[i])} for i in (errors.argmin(), errors.argmax()))
    return {"least": least, "most": most} if found else None


def _arm(found: Comparison | None, claims: dict[int, float], rate: Any, diverged: int, ranked: bool) -> dict[str, Any]:
    if found is None:
        finite = [value for value in claims.values() if math.isfinite(value)]
        numbers: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "p", "sign_flip_p", "seeds_to_decide"))
        numbers |= {"mean": sum(finite) / len(finite) if finite else None, "n": len(claims), "verdict": "undecided"}
    else:
        numbers = asdict(found if ranked else undecided(found))
    # An arm that diverges is never a gain, however its other seeds look.
    if diverged and numbers["verdict"] in ("better", "equivalent"):
        numbers["verdict"] = "undecided"
    return {**numbers, "learning_rate": rate[0], "weight_decay": rate[1], "diverged": diverged}


def flips(budgets: dict[float, dict[str, Any]]) -> list[str]:
    """A sentence for each arm whose ranking at one budget is contradicted at another."""
    found = []
    for arm in sorted({arm for budget in budgets.values() for arm in budget["arms"]}):
        verdicts = {b: budget["arms"][arm]["verdict"] for b, budget in budgets.items() if arm in budget["arms"]}
        if {"better", "worse"} <= set(verdicts.values()):
            told = ", ".join(f"{verdict} at budget {budget:g}" for budget, verdict in verdicts.items())
            found.append(f"{arm} flips: {told}")
    return found
