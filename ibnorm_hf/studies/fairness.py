# SPDX-License-Identifier: Apache-2.0
"""What makes a ranking unfair. Each reason is one sentence; with any of them no arm is called better or worse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .rows import Row

LEAST_SEEDS = 5
_SAME_SIZE = 0.01  # share by which whole parameter counts may differ where a norm's own are not known


def chosen_rates(rows: list[Row]) -> dict[tuple[str, float], tuple[float, float | None]]:
    """The best point of the grid by (arm, budget): the lowest mean over the tuning seeds; the lower rate at a tie.

    An arm without tuning runs at a budget takes the point chosen at the nearest smaller budget that has them.
    """
    values: dict[tuple[str, float], dict[Any, list[float]]] = {}
    for row in rows:
        if row.phase == "tuning":
            values.setdefault((row.arm, row.budget), {}).setdefault(row.rate, []).append(row.value)
    best = {
        key: min(points, key=lambda point: (sum(points[point]) / len(points[point]), point[0], point[1] or 0.0))
        for key, points in values.items()
    }
    tuned: dict[str, list[float]] = {}
    for arm, budget in best:
        tuned.setdefault(arm, []).append(budget)
    for arm, budget in sorted({(row.arm, row.budget) for row in rows}):
        earlier = [b for b in tuned.get(arm, []) if b <= budget]
        if (arm, budget) not in best and earlier:
            best[arm, budget] = best[arm, max(earlier)]
    return best


def unfairness(rows: list[Row], baseline: str, *, tuned: bool = True) -> list[str]:
    """Every reason against a ranking, as sentences; empty where there is none.

    Args:
        rows: all runs of a study.
        baseline: the declared baseline.
        tuned: False for a declared ablation, whose arms share one rate by intention: no rule about rates then.
    """
    found = _differing(rows)
    found += _seeds(rows)
    if tuned:
        found += _rates(rows)
    if baseline not in {row.arm for row in rows}:
        found.insert(0, f"the baseline {baseline} has no runs")
    return list(dict.fromkeys(found))


def _differing(rows: list[Row]) -> list[str]:
    """What has to be the same in all arms: by budget and seed, by budget, or everywhere."""
    everywhere: Callable[[Row], Any] = lambda row: ()  # noqa: E731
    by_budget: Callable[[Row], Any] = lambda row: row.budget  # noqa: E731
    by_seed: Callable[[Row], Any] = lambda row: (row.budget, row.seed)  # noqa: E731
    checks = (
        ("data_sha256", by_seed, "the samples or their order differ {0} at seed {1.seed}"),
        ("tokens", by_budget, "the tokens differ {0} at budget {1.budget:g}"),
        ("decay_sha256", everywhere, "the parameters that decay differ {0}"),
        ("evaluation_sha256", everywhere, "the evaluation sets differ {0}"),
        ("code_sha256", everywhere, "the code versions differ {0}"),
    )
    found = []
    for name, group, sentence in checks:
        first: dict[Any, Row] = {}
        for row in sorted(rows, key=lambda r: (r.arm, r.budget, r.seed, r.learning_rate)):
            value = getattr(row, name)
            if value is None:
                continue
            other = first.setdefault(group(row), row)
            if getattr(other, name) != value:
                where = f"between {other.arm} and {row.arm}" if other.arm != row.arm else f"within {row.arm}"
                found.append(sentence.format(where, row))
                break
    return found + _parameters(rows)


def _parameters(rows: list[Row]) -> list[str]:
    first: Row | None = None
    for row in sorted(rows, key=lambda r: (r.arm, r.budget, r.seed)):
        if row.parameters is None:
            continue
        first = first or row
        allowed = _SAME_SIZE * max(first.parameters or 0, row.parameters) if row.whole else 0
        if abs(row.parameters - (first.parameters or 0)) > allowed:
            return [
                f"the parameters differ between {first.arm} ({first.parameters:,}) and {row.arm} "
                f"({row.parameters:,}) by more than their norms"
            ]
    return []


def _seeds(rows: list[Row]) -> list[str]:
    found = []
    tuning = {row.seed for row in rows if row.phase == "tuning"}
    claim = {row.seed for row in rows if row.phase == "claim"}
    if both := sorted(tuning & claim):
        found.append(f"seed {both[0]} is used for tuning and for the claim")
    arms = {row.arm for row in rows}
    for budget in sorted({row.budget for row in rows if row.phase == "claim"}):
        seeds: dict[str, set[int]] = {arm: set() for arm in arms}
        for row in rows:
            if (row.budget, row.phase) == (budget, "claim"):
                seeds[row.arm].add(row.seed)
        shared = set.intersection(*seeds.values())
        for arm in sorted(arms):
            if len(seeds[arm]) < LEAST_SEEDS:
                found.append(
                    f"{arm} has {len(seeds[arm])} claim seed{'s' * (len(seeds[arm]) != 1)} at budget {budget:g}, "
                    f"fewer than {LEAST_SEEDS}"
                )
        if len(shared) < LEAST_SEEDS <= min(map(len, seeds.values())):
            found.append(f"the arms share {len(shared)} claim seeds at budget {budget:g}, fewer than {LEAST_SEEDS}")
    if not claim:
        found.append("there are no claim seeds")
    return found


def _rates(rows: list[Row]) -> list[str]:
    found = []
    best = chosen_rates(rows)
    for budget in sorted({row.budget for row in rows}):
        grids: dict[str, set[Any]] = {}
        trials: dict[str, int] = {}
        claims: dict[str, set[Any]] = {}
        for row in rows:
            if row.budget == budget and row.phase == "tuning":
                grids.setdefault(row.arm, set()).add(row.rate)
                trials[row.arm] = trials.get(row.arm, 0) + 1
            elif row.budget == budget and row.phase == "claim":
                claims.setdefault(row.arm, set()).add(row.rate)
        arms = sorted({row.arm for row in rows if row.budget == budget and row.phase != "curve"})
        for arm in arms:
            if grids.get(arm) != grids.get(arms[0]) or trials.get(arm) != trials.get(arms[0]):
                found.append(f"the grids differ between {arms[0]} and {arm} at budget {budget:g}")
                break
        for arm in arms:
            if (arm, budget) not in best:
                found.append(f"{arm} was not tuned: no seed of it occurs at several rates")
            elif arm in grids:
                found += _edge(arm, budget, best[arm, budget], grids[arm])
            claimed = claims.get(arm, set())
            if (arm, budget) in best and (other := claimed - {best[arm, budget]}):
                found.append(
                    f"{arm} claims at learning rate {min(rate for rate, _ in other):g} at budget {budget:g}, "
                    f"where tuning found {best[arm, budget][0]:g} to be the best"
                )
    return found


def _edge(arm: str, budget: float, best: tuple[float, float | None], grid: set[Any]) -> list[str]:
    # Only the learning rate has edges: a weight decay of 0 is a natural end.
    rates = sorted({rate for rate, _ in grid})
    if best[0] not in (rates[0], rates[-1]):
        return []
    which = "lowest" if best[0] == rates[0] else "highest"
    return [
        f"the best learning rate of {arm} at budget {budget:g} is {best[0]:g}, the {which} of its grid; "
        "widen the grid for all arms (extend: true)"
    ]


def finite_or_worst(rows: list[Row]) -> dict[tuple[str, float, Any, int], float]:
    """Value by (arm, budget, rate, seed); a run that diverged counts as the worst finite one of its budget."""
    worst: dict[float, float] = {}
    for row in rows:
        if math.isfinite(row.value):
            worst[row.budget] = max(worst.get(row.budget, -math.inf), row.value)
    return {
        (row.arm, row.budget, row.rate, row.seed): row.value
        if math.isfinite(row.value)
        else worst.get(row.budget, math.nan)
        for row in rows
    }
