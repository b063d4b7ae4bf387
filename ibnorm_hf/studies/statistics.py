# SPDX-License-Identifier: Apache-2.0
"""Differences to a baseline over shared seeds, with intervals corrected for the number of arms.

The model is a two-way fit: value = arm + seed + error. Seeds are blocks, because runs of one seed share their initial
weights and the order of their samples; the error is pooled over all arms. Intervals and p-values are Dunnett's (many
arms against one control, two-sided): they hold for all arms of a study at once. A smaller value is better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

Verdict = Literal["better", "worse", "equivalent", "undecided"]

LEVEL = 0.99
SIGN_FLIP_FROM = 8  # seeds: below, the smallest possible p-value is above .01
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline, in the units of the values given.

    Attributes:
        mean: mean over the seeds.
        difference: mean of arm minus baseline; below 0 the arm is better.
        low, high: simultaneous interval of the difference.
        p: two-sided, corrected for the number of arms.
        sign_flip_p: exact two-sided p of the sign-flip test, not corrected; None below eight seeds.
        n: seeds.
        seeds_to_decide: seeds with which the same difference and spread would decide; None where the verdict is
            decided, or where no number below 10,000 would do.
    """

    mean: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    verdict: Verdict
    sign_flip_p: float | None = None
    seeds_to_decide: int | None = None


def compare(
    values: dict[str, list[float]],
    baseline: str,
    *,
    margin: float,
    level: float = LEVEL,
    apart: frozenset[str] = frozenset(),
) -> dict[str, Comparison]:
    """Compare every arm with the baseline.

    Args:
        values: for each arm the value of each seed, in the same order of seeds for all; smaller is better; finite.
        baseline: the arm that the others are held against.
        margin: differences below this count as equal.
        level: coverage of all intervals of the study together.
        apart: arms whose spread is not that of the others (a run of theirs diverged). They stay out of the pooled
            error and are judged by their own differences, with Bonferroni's correction.

    Returns:
        A Comparison for each arm, the baseline included (difference 0, equivalent to itself).

    Raises:
        ValueError: fewer than two seeds, arms of different length, or a value that is no number.
    """
    table = {arm: np.asarray(row, dtype=np.float64) for arm, row in values.items()}
    n = len(table[baseline])
    if n < 2 or any(len(row) != n for row in table.values()):
        raise ValueError("every arm needs the same seeds, and at least two")
    if not all(np.isfinite(row).all() for row in table.values()):
        raise ValueError("values must be finite numbers")
    apart = apart - {baseline}
    pooled = [arm for arm in table if arm not in apart]
    others = [arm for arm in table if arm != baseline]
    spread, freedom = pooled_error(np.stack([table[arm] for arm in pooled]))
    result = {}
    for arm, row in table.items():
        paired = row - table[baseline]
        difference, mean = float(paired.mean()), float(row.mean())
        if arm == baseline:
            result[arm] = Comparison(mean, 0.0, 0.0, 0.0, 1.0, n, "equivalent")
            continue
        if arm in apart:
            width, p = _alone(paired, len(others), level)
        else:
            width, p = _together(difference, spread * math.sqrt(2 / n), len(pooled) - 1, freedom, level)
        low, high = difference - width, difference + width
        verdict = judge(low, high, margin)
        needed = None
        if verdict == "undecided" and arm not in apart:
            needed = seeds_to_decide(difference, spread, len(pooled), margin, level=level)
        result[arm] = Comparison(mean, difference, low, high, p, n, verdict, sign_flip(paired), needed)
    return result


def _alone(paired: np.ndarray, comparisons: int, level: float) -> tuple[float, float]:
    """(half width, p) of a mean of differences by their own spread, by Bonferroni one of so many."""
    freedom, difference = len(paired) - 1, float(paired.mean())
    scale = float(paired.std(ddof=1)) / math.sqrt(len(paired))
    width = float(stats.t.isf((1 - level) / 2 / comparisons, freedom)) * scale
    if not scale:
        return width, _exact(difference)
    return width, min(1.0, comparisons * float(2 * stats.t.sf(abs(difference) / scale, freedom)))


def _together(difference: float, scale: float, comparisons: int, freedom: int, level: float) -> tuple[float, float]:
    """(half width, p) of a difference by the pooled spread, one of so many by Dunnett."""
    width = dunnett_quantile(comparisons, freedom, level) * scale
    return width, dunnett_p(abs(difference) / scale, comparisons, freedom) if scale else _exact(difference)


def _exact(difference: float) -> float:
    return 1.0 if difference == 0 else 0.0


def judge(low: float, high: float, margin: float) -> Verdict:
    """The verdict of an interval of (arm minus baseline), smaller being better.

    ``equivalent`` comes first: a difference that is surely below the margin counts as none, whatever its sign. It is
    two one-sided tests, each at half of what the interval leaves out.
    """
    if -margin < low and high < margin:
        return "equivalent"
    if high < 0:
        return "better"
    if low > 0:
        return "worse"
    return "undecided"


def undecided(comparison: Comparison) -> Comparison:
    """The same numbers without a ranking, for a study that is refused."""
    keep = comparison.verdict == "equivalent" and comparison.difference == comparison.low == comparison.high == 0
    return comparison if keep else replace(comparison, verdict="undecided", seeds_to_decide=None)


def pooled_error(table: np.ndarray) -> tuple[float, int]:
    """(standard deviation of the error, degrees of freedom) of a table (arms, seeds) after arm and seed means."""
    arms, seeds = table.shape
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    freedom = max(1, (arms - 1) * (seeds - 1))
    return math.sqrt(float((rest**2).sum()) / freedom), freedom


def uneven_errors(table: np.ndarray) -> tuple[bool, np.ndarray]:
    """Whether arms differ so much in their errors that one pooled error describes none of them.

    The seeds' part is the median over the arms, so that a wild arm does not lend its error to the others. What is asked
    is the mean of the arms' variances over their median; the answer is yes where no one of 999 tables of equal normal
    errors has as much (a false yes in one study of a thousand). Reconstructed: there is no textbook's name for it.

    Args:
        table: values (arms, seeds).

    Returns:
        The answer, no below three arms, whose errors cannot be told apart; and each arm's own standard deviation
        (arms,).
    """
    ratio, spreads = _unevenness(table[None])
    if len(table) < 3 or not np.isfinite(ratio[0]):
        return False, spreads[0]
    null, _ = _unevenness(np.random.default_rng(0).normal(size=(999, *table.shape)))
    return bool((ratio[0] > null).all()), spreads[0]


def _unevenness(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    around = tables - tables.mean(2, keepdims=True)
    spreads = (around - np.median(around, 1, keepdims=True)).std(2, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (spreads**2).mean(1) / np.median(spreads, 1) ** 2, spreads


def half_width(spread: float, arms: int, seeds: int, *, level: float = LEVEL) -> float:
    """Half an interval of ``arms`` arms (baseline included) over ``seeds`` seeds, for an error of ``spread``.

    This is also the smallest difference that a study detects half of the time.
    """
    return dunnett_quantile(arms - 1, (arms - 1) * (seeds - 1), level) * spread * math.sqrt(2 / seeds)


def seeds_for(width: float, spread: float, arms: int, *, level: float = LEVEL) -> int | None:
    """The fewest seeds whose half interval is below ``width``; None above 10,000."""
    if width <= 0:
        return None
    count = arms - 1

    def enough(seeds: int) -> bool:
        """As ``half_width(...) < width``, without looking for a quantile."""
        reach = width / spread / math.sqrt(2 / seeds) if spread else math.inf
        return dunnett_p(reach, count, count * (seeds - 1)) < 1 - level

    # The quantile falls with the seeds: by its last value, so many at least are not enough.
    least = dunnett_quantile(count, count * (_MOST_SEEDS - 1), level) * spread / width
    low = max(1, math.floor(min(2 * least**2, _MOST_SEEDS)))
    high, step = low + 1, 1
    while high < _MOST_SEEDS and not enough(high):
        low, high, step = high, min(high + step, _MOST_SEEDS), 2 * step
    if high >= _MOST_SEEDS and not enough(_MOST_SEEDS):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def seeds_to_decide(difference: float, spread: float, arms: int, margin: float, *, level: float = LEVEL) -> int | None:
    """The fewest seeds with which this difference and spread would exclude 0, or fit into the margin."""
    widths = (abs(difference), margin - abs(difference))
    found = [n for width in widths if (n := seeds_for(width, spread, arms, level=level)) is not None]
    return min(found, default=None)


def sign_flip(paired: np.ndarray) -> float | None:
    """Exact two-sided p of paired differences (n,) under flips of their signs; None below eight or above twenty."""
    n = len(paired)
    if not SIGN_FLIP_FROM <= n <= 20:
        return None
    observed = abs(float(paired.sum()))
    sums = np.zeros(1)
    for value in paired:
        sums = np.concatenate((sums - value, sums + value))
    # The slack is for sums that are equal but for the order of their additions.
    return float((np.abs(sums) >= observed * (1 - 1e-12)).mean())


@lru_cache(maxsize=4096)
def dunnett_quantile(comparisons: int, freedom: int, level: float = LEVEL) -> float:
    """The q for which max |t_j| <= q with probability ``level``, for as many arms against one control."""
    high = 4.0
    while dunnett_p(high, comparisons, freedom) > 1 - level:
        high *= 2
    found: float = optimize.brentq(lambda q: dunnett_p(q, comparisons, freedom) - (1 - level), 0.0, high, xtol=1e-10)
    return found


def dunnett_p(q: float, comparisons: int, freedom: int) -> float:
    """P(max |t_j| > q) of ``comparisons`` differences to one control, all over the same number of seeds.

    The differences share the control (correlation 1/2) and the estimate of the error (``freedom`` degrees). A double
    sum over fixed nodes: scipy's integral is by random points, and a report must come out the same twice.
    """
    scale, scale_weight = _chi_nodes(freedom)
    z, z_weight = _normal_nodes()
    reach = math.sqrt(2) * q * scale[:, None]
    inside = (special.ndtr(z + reach) - special.ndtr(z - reach)) ** comparisons
    return float(min(1.0, max(0.0, 1 - scale_weight @ inside @ z_weight)))


@lru_cache(maxsize=4096)
def _chi_nodes(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of sqrt(chi2 / freedom)."""
    spread = stats.chi(freedom)
    low, high = spread.ppf(1e-12), spread.isf(1e-12)
    nodes, weights = _legendre(low, high)
    weights = weights * spread.pdf(nodes)
    return nodes / math.sqrt(freedom), weights / weights.sum()


@lru_cache(maxsize=1)
def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = _legendre(-8.5, 8.5)
    weights = weights * stats.norm.pdf(nodes)
    return nodes, weights / weights.sum()


def _legendre(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = _unit_nodes()
    return (nodes + 1) / 2 * (high - low) + low, weights * (high - low) / 2


@lru_cache(maxsize=1)
def _unit_nodes(count: int = 96) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(count)
