# SPDX-License-Identifier: Apache-2.0
"""Made-up studies whose truth is known."""

from __future__ import annotations

import numpy as np

from ibnorm_hf.studies.rows import Row, with_phases

RATES = (1e-3, 3e-3, 1e-2)


def fake_rows(
    truth: dict[str, float],
    *,
    random: int,
    seeds: int = 5,
    sigma: float = 0.01,
    shared: float = 0.01,
    budgets: tuple[float, ...] = (1.0,),
    **facts: object,
) -> list[Row]:
    """Runs of arms whose true losses are given; every seed moves all arms by the same ``shared`` noise, too.

    The middle rate is the best by far, on two tuning seeds.
    """
    generator = np.random.default_rng(random)
    rows = []
    for budget in budgets:
        seed_effect = generator.normal(0, shared, seeds)
        for arm, loss in truth.items():
            for tuning in (101, 102):
                for rate in RATES:
                    value = loss + 0.2 * (rate != RATES[1]) + generator.normal(0, sigma)
                    rows.append(Row(arm, budget, rate, None, tuning, value, **facts))  # type: ignore[arg-type]
            for seed in range(seeds):
                value = loss + seed_effect[seed] + generator.normal(0, sigma)
                rows.append(Row(arm, budget, RATES[1], None, seed, value, **facts))  # type: ignore[arg-type]
    return with_phases(rows)
