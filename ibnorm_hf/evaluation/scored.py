# SPDX-License-Identifier: Apache-2.0
"""The scores of one model: its benchmarks, its average, and what is missing, which is named and not averaged over."""

from __future__ import annotations

from dataclasses import dataclass

from .bounds import BENCHMARKS
from .results import ModelResults
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
    model_sha256: str | None = None

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
    return Scored(model.name, tuple(benchmarks), average, missing_all, tuple(model.remarks), model.model_sha256)


def differences(model: Scored, first: Scored) -> dict[str, Difference]:
    """Difference to the first model for every number that both have, by row name."""
    theirs = {row.name: row for _, _, row in first.rows()}
    return {row.name: difference(row, theirs[row.name]) for _, _, row in model.rows() if row.name in theirs}
