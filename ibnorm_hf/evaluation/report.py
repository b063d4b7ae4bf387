# SPDX-License-Identifier: Apache-2.0
"""Scores as text: a table for eyes, markdown for pages, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from ..common import strict_json
from .bounds import BENCHMARKS
from .scored import Scored, differences
from .scores import SIGNIFICANT, Measured

_HEAD = ("", "raw", "stderr", "n", "chance", "score", "± stderr", "")
_FOOT = (
    f'"at chance": within {SIGNIFICANT:g} standard errors of it. Scores are cut at 0, so a mean of scores of a guesser '
    "is above 0.",
    f'"not an improvement": a difference under {SIGNIFICANT:g} standard errors. They cover the choice of questions, '
    "not the seeds of training.",
)
Table = list[tuple[str, ...]]
_KEPT = ("raw", "stderr", "n", "chance", "score", "score_stderr", "mark", "note", "remark")  # of a row, for programs


def _row(row: Measured, indent: str) -> tuple[str, ...]:
    return (
        indent + row.name,
        f"{row.raw:.4f}",
        f"{row.stderr:.4f}",
        str(row.n),
        f"{row.chance:.4f}",
        f"{row.score:.2f}",
        f"{row.score_stderr:.2f}",
        "; ".join(text for text in (row.note or row.mark, row.remark) if text),
    )


def _model_table(model: Scored) -> Table:
    rows: Table = [_HEAD]
    for benchmark in model.benchmarks:
        why = "incomplete: no mean" if benchmark.subtasks else "missing"
        rows.append(_row(benchmark.mean, "") if benchmark.mean is not None else _without_number(benchmark.name, why))
        if len(benchmark.subtasks) > 1 or benchmark.mean is None:
            rows += [_row(row, "  ") for row in benchmark.subtasks]
    refused = _without_number("Average", "refused: tasks are missing")
    return [*rows, refused if model.average is None else _row(model.average, "")]


def _without_number(name: str, why: str) -> tuple[str, ...]:
    return (name, *["-"] * (len(_HEAD) - 2), why)


def _side_by_side(models: Sequence[Scored]) -> Table:
    first, others = models[0], models[1:]
    rows: Table = [
        ("score", first.name, *(cell for m in others for cell in (m.name, "difference ± stderr", "against the first")))
    ]
    apart = [differences(model, first) for model in others]
    tops = [{row.name: row for level, _, row in m.rows() if level != "subtask"} for m in models]
    for name in [b.name for b in BENCHMARKS] + ["Average"]:
        cells = [name, f"{tops[0][name].score:.2f}" if name in tops[0] else "-"]
        for top, known in zip(tops[1:], apart, strict=True):
            cells.append(f"{top[name].score:.2f}" if name in top else "-")
            gap = known.get(name) if name in top and name in tops[0] else None
            cells += [f"{gap.points:+.2f} ± {gap.stderr:.2f}", gap.verdict] if gap else ["-", "-"]
        rows.append(tuple(cells))
    return rows


def _tables(models: Sequence[Scored]) -> list[tuple[str, Table]]:
    out = [(model.name, _model_table(model)) for model in models]
    if len(models) > 1:
        out.append(("Side by side", _side_by_side(models)))
    return out


def _missing_lines(models: Sequence[Scored]) -> list[str]:
    """What is missing, and what the numbers of a model are not."""
    missing = [f"{m.name}: missing or incomplete: {', '.join(m.missing)}" for m in models if m.missing]
    return [*missing, *(f"{m.name}: note: {remark}" for m in models for remark in m.remarks)]


def as_table(models: Sequence[Scored]) -> str:
    """Aligned columns: subtasks under their benchmark."""
    out = []
    for title, rows in _tables(models):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        out.append(title)
        for row in rows:
            cells = [
                cell.ljust(width) if i in (0, len(row) - 1) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            out.append("  ".join(cells).rstrip())
        out.append("")
    return "\n".join([*out, *_missing_lines(models), *_FOOT])


def as_markdown(models: Sequence[Scored]) -> str:
    """One markdown table a model, and one side by side."""
    out = []
    for title, rows in _tables(models):
        out += [f"### {title}", ""]
        lines = ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows]
        out += [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]
    return "\n\n".join(["\n".join(out), *_missing_lines(models), *_FOOT])


def _records(models: Sequence[Scored]) -> list[dict[str, Any]]:
    out = []
    for model in models:
        apart = differences(model, models[0]) if model is not models[0] else {}
        for level, benchmark, row in model.rows():
            gap = apart.get(row.name)
            out.append(
                {
                    "model": model.name,
                    "level": level,
                    "benchmark": benchmark,
                    "name": row.name,
                    **{key: getattr(row, key) for key in _KEPT},
                    "full": not (row.note or row.remark),
                    "difference": gap.points if gap else None,
                    "difference_stderr": gap.stderr if gap else None,
                    "verdict": gap.verdict if gap else None,
                }
            )
    return out


def as_json(models: Sequence[Scored]) -> str:
    """One object a model: its rows, its average or null, what is missing."""
    records = _records(models)
    content = [
        {
            "model": model.name,
            "model_sha256": model.model_sha256,
            "average": None if model.average is None else model.average.score,
            "average_stderr": None if model.average is None else model.average.score_stderr,
            "missing": list(model.missing),
            "remarks": list(model.remarks),
            "rows": [{k: v for k, v in r.items() if k != "model"} for r in records if r["model"] == model.name],
        }
        for model in models
    ]
    return strict_json.dumps({"difference_to": models[0].name, "models": content}, sort_keys=False)


def as_csv(models: Sequence[Scored]) -> str:
    """One line a number; rows that are missing are not there."""
    records = _records(models)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().rstrip("\n")


STYLES: dict[str, Callable[[Sequence[Scored]], str]] = {
    "table": as_table,
    "json": as_json,
    "markdown": as_markdown,
    "csv": as_csv,
}
