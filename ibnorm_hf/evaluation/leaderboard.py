# SPDX-License-Identifier: Apache-2.0
"""Leaderboard scores of one or several models: read, held against each other, shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import UserError
from ..common.paths import write_atomic
from ..common.run import is_run
from .bounds import LEAVES
from .chart import draw
from .report import STYLES
from .results import ModelResults, load_models
from .scored import score


def leaderboard(
    places: Sequence[str], *, style: str = "table", partial: bool = False, chart: Path | None = None
) -> str:
    """Score results and return the text in the chosen style; remarks go to stderr.

    The scores of each run folder are also written to its ``eval/leaderboard.json``, for its card.

    Args:
        places: one results file, run folder or folder of results files a model; differences are to the first.
        style: ``table``, ``json``, ``markdown`` or ``csv``.
        partial: accept missing tasks: they are named, and no mean is made over the rest.
        chart: where to draw a bar chart (PNG).

    Raises:
        UserError: missing tasks without ``partial``, results that cannot be read, or models asked different questions.
    """
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
    for place, entry in zip(places, scored, strict=True):
        if is_run(Path(place).expanduser()):
            # The run's card reads it, and takes it for this run's only while the weights are these.
            path = Path(place).expanduser() / "eval" / "leaderboard.json"
            write_atomic(path, STYLES["json"]([entry]) + "\n")
            print(f"scores {path}", file=sys.stderr)
    if chart is not None:
        draw(scored, chart)
        print(f"chart {chart}", file=sys.stderr)
    return text


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
