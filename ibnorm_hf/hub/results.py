# SPDX-License-Identifier: Apache-2.0
"""A run's numbers as text for its card."""

from __future__ import annotations

from typing import Any

from .facts import Facts

NOT_MEASURED = "not measured"
# Keys of eval/validation.json that are scores, and how a card calls them.
MEASURES = {
    "loss": "validation loss (nats a token)",
    "perplexity": "validation perplexity",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy (top 1)",
    "top1": "accuracy (top 1)",
    "top5": "accuracy (top 5)",
    "calibration_error": "calibration error",
}


def number(value: Any) -> str:
    """Text of a number: thousands separated, six digits of a fraction; ``not measured`` for None."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; a bar in a cell cannot break it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def is_full(row: dict[str, Any], scores: dict[str, Any]) -> bool:
    """Whether a row of leaderboard.json is a full measurement; files of earlier versions say it of the whole only."""
    return bool(row["full"]) if "full" in row else not (row.get("note") or scores.get("remarks"))


def leaderboard_table(facts: Facts) -> str:
    """Score, raw value, standard error, n and chance of every benchmark; of every subtask where some are missing."""
    if not facts.leaderboard:
        if facts.unscored:
            return (
                "Evaluated, but there are no scores of these very weights yet: `ibnorm-hf leaderboard RUN` writes them."
            )
        return f"Open LLM Leaderboard II: {NOT_MEASURED}."
    rows = facts.leaderboard["rows"]
    shown = [row for row in rows if row["level"] != "subtask"]
    if facts.leaderboard.get("average") is None:
        shown = rows
    cells = [
        [
            row["name"],
            f"{row['score']:.2f}",
            f"{row['raw']:.4f} ± {row['stderr']:.4f}",
            f"{row['chance']:.4f}",
            f"{row['n']:,}",
            row.get("mark") or "",
            "; ".join(text for key in ("note", "remark") if (text := row.get(key))),
        ]
        for row in shown
    ]
    text = table(["benchmark", "score", "raw ± stderr", "chance", "n", "", "note"], cells)
    text += "\n\nA score is 0 at chance and 100 when all is right; within two standard errors of chance it is chance."
    for remark in facts.leaderboard.get("remarks") or []:
        text += f"\n\nNot the leaderboard's own measurement: {remark}."
    missing = facts.leaderboard.get("missing")
    if missing:
        text += f"\n\nNot measured, so there is no average: {', '.join(missing)}."
    return text
