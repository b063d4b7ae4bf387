# SPDX-License-Identifier: Apache-2.0
"""Which runs a study needs: a function of its definition and of what has come out so far, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .definition import Definition, scaled
from .fairness import chosen_rates
from .rows import Phase, Row

_MOST_EXTENSIONS = 4


@dataclass(frozen=True)
class Run:
    """One run of a study; ``rate`` is (learning rate, weight decay), None where the recipe's own stands."""

    arm: str
    budget: float
    rate: tuple[float | None, float | None]
    seed: int
    phase: Phase

    @property
    def label(self) -> str:
        """A name for people: arm, budget, rate, seed."""
        rate = "".join(f"-{n}{v:g}" for n, v in zip(("lr", "wd"), self.rate, strict=True) if v is not None)
        return f"{self.arm}-{self.budget:g}x{rate}-seed{self.seed}"


def overrides(study: Definition, run: Run, base: dict[str, Any]) -> dict[str, Any]:
    """The keys that make the base recipe this run; ``base`` holds the base's own values."""
    shared, own = study.keys, study.arms[run.arm].keys
    keys = {**shared, **own}
    if isinstance(shared.get("model"), dict) and isinstance(own.get("model"), dict):
        keys["model"] = {**shared["model"], **own["model"]}
    lengths = scaled({**base, **keys}, run.budget)
    rate = {n: v for n, v in zip(("learning_rate", "weight_decay"), run.rate, strict=True) if v is not None}
    return {**keys, **lengths, **rate, "seed": run.seed}


def as_words(keys: dict[str, Any]) -> list[str]:
    """Keys as words of a command line."""
    out = []
    for key, value in keys.items():
        if key == "model" and isinstance(value, dict):
            out += as_words({f"model.{k}": v for k, v in value.items()})
        elif isinstance(value, list) and not key.startswith("model.") and not any(isinstance(v, dict) for v in value):
            out += [f"--{key}", *map(str, value)]
        else:
            text = json.dumps(value) if isinstance(value, dict | list | bool) or value is None else str(value)
            out.append(f"--{key}={text}")
    return out


def noise_floor(study: Definition) -> list[Run]:
    """The baseline at the base's own rate, on the first five claim seeds."""
    rate = (None, None)
    return [Run(study.baseline, min(study.budgets), rate, seed, "curve") for seed in study.claim_seeds[:5]]


def tuning(study: Definition, rates: tuple[float, ...]) -> list[Run]:
    """Every arm at every point of the grid, on every tuning seed and budget."""
    decays: tuple[float | None, ...] = study.weight_decays or (None,)
    return [
        Run(arm, budget, (rate, decay), seed, "tuning")
        for budget in study.tuning_budgets
        for seed in study.tuning_seeds
        for rate in rates
        for decay in decays
        for arm in study.arms
    ]


def claims(study: Definition, chosen: dict[tuple[str, float], Any]) -> list[Run]:
    """Every arm at its chosen point, on every claim seed and budget; then the baseline's further budgets."""
    runs = [
        Run(arm, budget, chosen.get((arm, budget), (None, None)), seed, "claim")
        for budget in study.budgets
        for seed in study.claim_seeds
        for arm in study.arms
    ]
    for budget in study.curve_budgets:
        near = max((b for b in study.budgets if b <= budget), default=min(study.budgets))
        rate = chosen.get((study.baseline, near), (None, None))
        runs += [Run(study.baseline, budget, rate, seed, "curve") for seed in study.claim_seeds]
    return runs


def extended(study: Definition, rows: Iterable[Row]) -> tuple[float, ...]:
    """The learning rates of the grid, widened while an arm's best is an edge and ``extend`` is on.

    A step of widening multiplies the edge by the ratio beside it, for all arms; at most four are made.
    """
    rates = study.learning_rates
    rows = list(rows)
    if not study.extend or len(rates) < 2:
        return rates
    for _ in range(_MOST_EXTENSIONS):
        known = [row for row in rows if row.phase == "tuning" and row.learning_rate in rates]
        tried = {(row.arm, row.budget, row.learning_rate) for row in known}
        if len(tried) < len(study.arms) * len(study.tuning_budgets) * len(rates):
            return rates  # this grid is not done yet
        best = {point[0] for (_, budget), point in chosen_rates(known).items() if budget in study.tuning_budgets}
        low = (rates[0] ** 2 / rates[1],) if rates[0] in best else ()
        high = (rates[-1] ** 2 / rates[-2],) if rates[-1] in best else ()
        if not low and not high:
            return rates
        rates = tuple(float(f"{rate:.6g}") for rate in (*low, *rates, *high))
    return rates


def without_phase(run: Run) -> Run:
    """Two phases can ask for the same run; it is made once."""
    return replace(run, phase="claim")
