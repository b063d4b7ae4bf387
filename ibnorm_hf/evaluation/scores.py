# SPDX-License-Identifier: Apache-2.0
"""From raw metrics to leaderboard scores, with the uncertainty that belongs beside each of them.

>>> round(normalize(0.33, 1 / 4), 2)  # GPQA has four choices
10.67
>>> normalize(0.20, 1 / 4)  # below chance
0.0

BBH is the mean of its subtasks' scores, which is not the score of the mean: a subtask below chance counts as 0 and no
less. With two subtasks of 2 and 5 choices, raw 0.40 and 0.60:

>>> subtasks = [Measured("a", 0.40, 0.01, 100, 1 / 2), Measured("b", 0.60, 0.01, 100, 1 / 5)]
>>> [round(s.score, 2) for s in subtasks]
[0.0, 50.0]
>>> mean = combine("BBH", subtasks)
>>> round(mean.score, 2), round(normalize(mean.raw, mean.chance), 2)
(25.0, 23.08)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

SIGNIFICANT = 2.0  # standard errors


def normalize(raw: float, chance: float) -> float:
    """Score in [0, 100]: 0 at or below chance, 100 for a perfect raw metric; raw and chance in [0, 1]."""
    return max(0.0, 100.0 * (raw - chance) / (1.0 - chance))


@dataclass(frozen=True)
class Measured:
    """One row: a raw metric with everything needed to judge it.

    Args:
        name: of the subtask, the benchmark or "Average".
        raw: metric in [0, 1].
        stderr: standard error of ``raw`` over the choice of questions.
        n: questions asked.
        chance: expected ``raw`` of a guesser.
        fixed_score: for means only, whose score is the mean of scores; else it follows from ``raw``.
        fixed_score_stderr, fixed_chance_stderr: for means only, propagated from their parts.
        note: why the number is incomplete, so that no mean is made with it, or "".
        remark: in what the measurement is not the full one, or "".
    """

    name: str
    raw: float
    stderr: float
    n: int
    chance: float
    fixed_score: float | None = field(default=None, repr=False)
    fixed_score_stderr: float | None = field(default=None, repr=False)
    fixed_chance_stderr: float | None = field(default=None, repr=False)
    note: str = ""
    remark: str = ""

    @property
    def score(self) -> float:
        """Normalized score in [0, 100]."""
        return normalize(self.raw, self.chance) if self.fixed_score is None else self.fixed_score

    @property
    def score_stderr(self) -> float:
        """Standard error of the score before it was cut at 0; a score cut to 0 is no more certain than others."""
        if self.fixed_score_stderr is not None:
            return self.fixed_score_stderr
        return 100.0 * self.stderr / (1.0 - self.chance)

    @property
    def chance_stderr(self) -> float:
        """Standard error that a guesser's raw metric would have on as many questions."""
        if self.fixed_chance_stderr is not None:
            return self.fixed_chance_stderr
        return math.sqrt(self.chance * (1.0 - self.chance) / self.n)

    @property
    def mark(self) -> str:
        """ "at chance" within two standard errors of it, "below chance" under that, else "".

        The larger of the measured standard error and a guesser's is taken: a model that always answers alike can show
        a spread of 0 on few questions.
        """
        margin = SIGNIFICANT * max(self.stderr, self.chance_stderr)
        if self.raw < self.chance - margin:
            return "below chance"
        return "at chance" if self.raw <= self.chance + margin else ""


def standard_error(raw: float, reported: float | None, n: int) -> float:
    """The harness's standard error, or a cautious one where it says none or 0.

    All answers right, or all wrong, show no spread, which is no certainty: then, and where the harness reports
    nothing, one right and one wrong answer are added before the binomial formula.

    >>> standard_error(0.5, 0.01, 100)
    0.01
    >>> round(standard_error(0.0, 0.0, 100), 4)
    0.0099
    """
    if reported is not None and math.isfinite(reported) and reported > 0:
        return reported
    p = (raw * n + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


def combine(name: str, parts: Sequence[Measured], note: str = "") -> Measured:
    """Unweighted mean of independent parts: of raw metrics, of chances, of scores; n is the sum."""
    k = len(parts)

    def spread(values: Sequence[float]) -> float:
        return math.sqrt(sum(v * v for v in values)) / k

    return Measured(
        name,
        raw=sum(p.raw for p in parts) / k,
        stderr=spread([p.stderr for p in parts]),
        n=sum(p.n for p in parts),
        chance=sum(p.chance for p in parts) / k,
        fixed_score=sum(p.score for p in parts) / k,
        fixed_score_stderr=spread([p.score_stderr for p in parts]),
        fixed_chance_stderr=spread([p.chance_stderr for p in parts]),
        note=note,
        remark=f"no full measurement in {short} of {k} parts" if (short := sum(bool(p.remark) for p in parts)) else "",
    )


@dataclass(frozen=True)
class Difference:
    """Score of one model minus that of the first one, in points; both answered the same questions once.

    The two are treated as independent, which overstates the error where they agree on most questions. Training seeds
    are not part of it.
    """

    points: float
    stderr: float

    @property
    def verdict(self) -> str:
        """ "higher" or "lower" from two standard errors on, else "not an improvement".

        >>> Difference(1.0, 0.6).verdict, Difference(1.2, 0.6).verdict, Difference(-2.0, 0.6).verdict
        ('not an improvement', 'higher', 'lower')
        """
        if abs(self.points) < SIGNIFICANT * self.stderr or self.points == 0:
            return "not an improvement"
        return "higher" if self.points > 0 else "lower"


def difference(model: Measured, first: Measured) -> Difference:
    """How much ``model`` scores above ``first``, with the propagated standard error."""
    return Difference(model.score - first.score, math.hypot(model.score_stderr, first.score_stderr))
