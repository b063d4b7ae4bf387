# SPDX-License-Identifier: Apache-2.0
"""Scores as a bar chart: a group of bars a benchmark, a bar a model, whiskers of two standard errors."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from .bounds import BENCHMARKS
from .scored import Scored
from .scores import SIGNIFICANT


def draw(models: Sequence[Scored], path: Path) -> None:
    """Write a PNG; bars at chance are hatched, numbers that do not exist have no bar, remarks stand below.

    Raises:
        UserError: the file's name does not end in .png, or it cannot be written.
    """
    require_png(path)
    from matplotlib.figure import Figure

    names = [b.name for b in BENCHMARKS] + ["Average"]
    figure = Figure(figsize=(1.4 * len(names) + 1, 4.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        tops = {row.name: row for level, _, row in model.rows() if level != "subtask"}
        for k, row in ((k, tops[name]) for k, name in enumerate(names) if name in tops):
            x = k + (i - (len(models) - 1) / 2) * width
            margin = SIGNIFICANT * row.score_stderr
            style: dict[str, Any] = {"hatch": "//" if row.mark else None, "alpha": 0.45 if row.remark else 1.0}
            axes.bar(x, row.score, width, color=f"C{i}", edgecolor="white", zorder=2, **style)
            # The score cannot leave 0 to 100, so neither does its whisker.
            reach = [[min(margin, row.score)], [min(margin, 100 - row.score)]]
            axes.errorbar(x, row.score, yerr=reach, color="black", capsize=3, linewidth=1, zorder=3)
        axes.bar(0, 0, color=f"C{i}", label=model.name)
    axes.bar(0, 0, color="grey", hatch="//", edgecolor="white", label="not above chance")
    if any(row.remark for model in models for _, _, row in model.rows()):
        axes.bar(0, 0, color="grey", alpha=0.45, label="no full measurement")
    lines = [f"{model.name}: {remark}" for model in models for remark in model.remarks]
    axes.set_xlabel("\n".join(textwrap.fill(line, 140) for line in lines), fontsize="x-small", loc="left")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("score (0 = chance, 100 = perfect)")
    axes.set_title(f"Open LLM Leaderboard II, whiskers: {SIGNIFICANT:g} standard errors", fontsize="medium")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3, zorder=0)
    axes.legend(fontsize="small")
    save(figure, path, dpi=150)


def require_png(path: Path) -> None:
    """Raise UserError unless a picture's name ends in .png."""
    if path.suffix.lower() != ".png":
        raise UserError(f"chart {path} must end in .png")


def save(figure: Any, path: Path, *, dpi: int) -> None:
    """Write a picture. Raises UserError where its place cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    except OSError as error:
        raise UserError(f"chart {path} cannot be written ({error.strerror}); choose another place") from None
