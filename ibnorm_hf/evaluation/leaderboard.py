# SPDX-License-Identifier: Apache-2.0
"""Leaderboard scores of one or several models, with what is missing said and not averaged over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from .bounds import BENCHMARKS, LEAVES
from .results import ModelResults, load_models
from .scores import Difference, Measured, combine, difference


@dataclass(frozen=True)
class BenchmarkScore:
    """A benchmark: its subtasks, and their mean unless some are missing or incomplete."""

    name: str
    subtasks: tuple[Measured, ...]
    mean: Measured | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Everything about one model; ``average`` is None where anything is missing."""

    name: str
    benchmarks: tuple[BenchmarkScore, ...]
    average: Measured | None
    missing: tuple[str, ...]
    remarks: tuple[str, ...]

    def rows(self) -> list[tuple[str, str, Measured]]:
        """(level, benchmark, row) of every number there is, subtasks before their benchmark, the average last."""
        out = []
        for benchmark in self.benchmarks:
            out += [("subtask", benchmark.name, row) for row in benchmark.subtasks]
            if benchmark.mean is not None:
                out.append(("benchmark", benchmark.name, benchmark.mean))
        if self.average is not None:
            out.append(("average", "Average", self.average))
        return out


def score(model: ModelResults) -> Scored:
    """Normalize and combine whatever there is."""
    benchmarks = []
    for benchmark in BENCHMARKS:
        rows = tuple(model.leaves[leaf.task] for leaf in benchmark.leaves if leaf.task in model.leaves)
        missing = [leaf.task for leaf in benchmark.leaves if leaf.task not in model.leaves]
        missing += [f"{row.name} ({row.note})" for row in rows if row.note]
        mean = None if missing else combine(benchmark.name, rows)
        benchmarks.append(BenchmarkScore(benchmark.name, rows, mean, tuple(missing)))
    means = [b.mean for b in benchmarks if b.mean is not None]
    average = combine("Average", means) if len(means) == len(BENCHMARKS) else None
    missing_all = tuple(name for b in benchmarks for name in b.missing)
    return Scored(model.name, tuple(benchmarks), average, missing_all, tuple(model.remarks))


def leaderboard(
    places: Sequence[str], *, style: str = "table", partial: bool = False, chart: Path | None = None
) -> str:
    """Score results and return the text in the chosen style; remarks go to stderr.

    Args:
        places: one results file, run folder or folder of results files a model; differences are to the first.
        style: ``table``, ``json``, ``markdown`` or ``csv``.
        partial: accept missing tasks: they are named, and no mean is made over the rest.
        chart: where to draw a bar chart (PNG).

    Raises:
        UserError: missing tasks without ``partial``, results that cannot be read, or models asked different questions.
    """
    from .report import STYLES

    models = load_models(places)
    _check_comparable(models)
    scored = [score(model) for model in models]
    for model in scored:
        if model.missing and not partial:
            shown = ", ".join(model.missing[:3]) + (", ..." if len(model.missing) > 3 else "")
            raise UserError(
                f"{model.name} lacks {len(model.missing)} of {len(LEAVES)} tasks ({shown}); evaluate them, or give "
                "--partial to see the rest without an average"
            )
        for remark in model.remarks:
            print(f"note: {remark}", file=sys.stderr)
    text = STYLES[style](scored)
    if chart is not None:
        from .chart import draw

        draw(scored, chart)
        print(f"chart {chart}", file=sys.stderr)
    return text


def differences(model: Scored, first: Scored) -> dict[str, Difference]:
    """Difference to the first model for every number that both have, by row name."""
    theirs = {row.name: row for _, _, row in first.rows()}
    return {row.name: difference(row, theirs[row.name]) for _, _, row in model.rows() if row.name in theirs}


def _check_comparable(models: Sequence[ModelResults]) -> None:
    if not models:
        raise UserError("leaderboard needs at least one results file or run folder")
    first = models[0]
    for model in models[1:]:
        common = [task for task in LEAVES if task in model.leaves and task in first.leaves]
        for task in common:
            mine, theirs = model.leaves[task].n, first.leaves[task].n
            if mine != theirs:
                raise UserError(
                    f"{model.name} answered {mine} questions of {task} and {first.name} {theirs}; evaluate both alike"
                )
        other = [
            t for t in common if model.hashes.get(t) != first.hashes.get(t) and t in model.hashes and t in first.hashes
        ]
        if other:
            model.remarks.append(
                f"{model.name} and {first.name} saw other questions or prompts in {len(other)} tasks ({other[0]}, ...)"
            )
