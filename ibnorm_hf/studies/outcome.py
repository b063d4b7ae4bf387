# SPDX-License-Identifier: Apache-2.0
"""What a report says of the runs of a study, read from their folders."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.run import Run as RunFolder
from ..common.run import fingerprint, is_model
from ..common.study import RunReport
from .definition import Definition
from .plan import Run
from .rows import Row
from .runs import measured, state

if TYPE_CHECKING:
    from .compare import Comparison


def line(study: Comparison, run: Run) -> dict[str, Any]:
    """A line of runs.csv."""
    folder = study.folder_of(run)
    recipe = study.recipe(run)
    value = measured(folder, study.study.unit.key)
    return {
        "arm": run.arm,
        "phase": run.phase,
        "budget": f"{run.budget:g}",
        "learning_rate": f"{recipe.run.learning_rate:g}",
        "weight_decay": f"{recipe.run.weight_decay:g}",
        "seed": run.seed,
        "state": state(folder),
        study.study.unit.key: "" if value is None or math.isinf(value) else repr(value),
        "run": folder.name,
    }


def earlier(study: Comparison, runs: list[Run]) -> list[dict[str, Any]]:
    """Lines of runs.csv for the other runs in the study's folder: of arms, grids or code that it has no more."""
    known = {study.folder_of(run).name for run in runs}
    root = study.folder / "runs"
    lines = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in known):
        words: dict[str, Any] = {"phase": "earlier", "state": state(folder), "run": folder.name}
        try:
            config, value = RunFolder(folder).config, measured(folder, study.study.unit.key)
        except UserError:
            lines.append(words | {"state": "damaged"})
            continue
        words |= {key: config[key] for key in ("learning_rate", "weight_decay", "seed") if key in config}
        lines.append(words | ({study.study.unit.key: repr(value)} if value and math.isfinite(value) else {}))
    return lines


def entries(study: Comparison, runs: list[Run]) -> list[RunReport]:
    """What report.json says of each run, so that a model card finds its own."""
    out: list[RunReport] = []
    for run in runs:
        folder = study.folder_of(run)
        value = measured(folder, study.study.unit.key)
        # Weights that a killed study has not removed yet must not show.
        kept = study.study.keep_models and state(folder) == "done" and is_model(folder / "model")
        out.append(
            {
                "run": folder.name,
                "arm": run.arm,
                "phase": run.phase,
                "budget": run.budget,
                "seed": run.seed,
                "measured": None if value is None or math.isinf(value) else value,
                "model_sha256": fingerprint([folder / "model"]) if kept else None,
            }
        )
    return out


def made_by(study: Comparison, runs: list[Run]) -> dict[str, list[str]]:
    """Commits, and versions of torch and transformers, that the runs were made by, as far as their folders say."""
    found: dict[str, set[str]] = {name: set() for name in ("commits", "torch", "transformers")}
    for folder in {study.folder_of(run) for run in runs}:
        environment: Any = RunFolder(folder).environment
        for start in (environment, *environment.get("earlier", [])):
            told = {**(start.get("versions") or {}), "commits": start.get("commit")}
            for name, values in found.items():
                values |= {value} if isinstance(value := told.get(name), str) else set()
    return {name: sorted(values) for name, values in found.items()}


def curves(study: Comparison, runs: list[Run]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Training loss by step of the claim runs, by budget and arm."""
    out: dict[str, dict[str, list[tuple[float, float]]]] = {}
    if study.study.unit.key != "loss":
        return out
    for run in runs:
        if run.phase == "claim":
            lines: list[Any] = list(RunFolder(study.folder_of(run)).metrics)
            points = [(float(line["step"]), float(line["loss"])) for line in lines if line.get("loss") is not None]
            out.setdefault(f"{run.budget:g}", {}).setdefault(run.arm, []).extend(points)
    return out


def lambdas(study: Definition) -> dict[str, float]:
    """Lambda of the arms that name one: an arm `NAME@VALUE` belongs to the curve NAME."""
    values = {name: arm.keys.get("norm_lambda") for name, arm in study.arms.items() if "@" in name}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def bytes_per_token(study: Comparison, runs: list[Run]) -> float | None:
    """Of the validation text; None for images."""
    for run in runs:
        scores: Any = RunFolder(study.folder_of(run)).validation
        if scores.get("bits_per_byte") and scores.get("loss"):
            return float(scores["loss"]) / math.log(2) / float(scores["bits_per_byte"])
    return None


def timing(rows: list[Row]) -> dict[str, Any]:
    """Seconds of training an arm and budget: medians with their range. It differs from machine to machine."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.seconds:
            groups.setdefault(f"{row.budget:g}", {}).setdefault(row.arm, []).append(row.seconds)
    return {
        budget: {
            arm: {"median": statistics.median(s), "low": min(s), "high": max(s), "runs": len(s)}
            for arm, s in sorted(arms.items())
        }
        for budget, arms in sorted(groups.items())
    }


def seconds(folder: Path) -> float | None:
    """Seconds of training that a run's log adds up to; None where it does not say."""
    total, last = 0.0, 0
    lines: list[Any] = list(RunFolder(folder).metrics)
    for line in lines:
        speed, seen = line.get("tokens_per_s", line.get("images_per_s")), line.get("tokens", line.get("images"))
        if speed and seen:
            total, last = total + (seen - last) / speed, seen
    return round(total, 3) if total else None
