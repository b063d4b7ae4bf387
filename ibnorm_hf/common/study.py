# SPDX-License-Identifier: Apache-2.0
"""The form of a study's report.json, its one reader, and which of its runs a run folder is.

`ibnorm-hf compare` writes it; a model card and README's summary are made from it, and know a study by nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from .errors import UserError, one_line
from .forms import Number, check
from .listing import require_regular
from .run import Run, fingerprint
from .strict_json import read_object

REPORT = "report.json"
VERDICTS = ("better", "worse", "equivalent", "undecided")


class _ArmNeeds(TypedDict):
    mean: Number | None
    difference: Number | None
    low: Number | None
    high: Number | None
    p: Number | None
    n: int
    verdict: str
    learning_rate: Number


class ArmReport(_ArmNeeds, total=False):
    """An arm at a budget. Values are costs in the study's unit, so below 0 an arm is better, whatever the metric."""

    sign_flip_p: Number | None
    seeds_to_decide: int | None
    weight_decay: Number | None
    diverged: int
    effects: dict[str, str]


class _BudgetNeeds(TypedDict):
    seeds: list[int]
    arms: dict[str, ArmReport]


class ArmError(TypedDict):
    """An arm's own error of one run, after its mean and the median of each seed over the arms."""

    arm: str
    error: Number


class Uneven(TypedDict):
    """The arms of least and of most error, where one pooled error describes neither."""

    least: ArmError
    most: ArmError


class BudgetReport(_BudgetNeeds, total=False):
    """A budget: the claim seeds that all arms share, the error of one run after arm and seed means, and the arms."""

    error: Number | None
    uneven: Uneven | None


class RunReport(TypedDict):
    """A run of the study. ``run`` is its folder's name, ``measured`` the metric as eval/validation.json has it."""

    run: str
    arm: str
    phase: str
    budget: Number
    seed: int
    measured: Number | None
    model_sha256: str | None


class _ReportNeeds(TypedDict):
    baseline: str
    margin: Number
    arms: dict[str, ArmReport]
    refused: list[str]


class Report(_ReportNeeds, total=False):
    """report.json. ``arms`` is the largest budget; a table of runs made elsewhere has no study, key and runs."""

    level: Number
    budgets: dict[str, BudgetReport]
    flips: list[str]
    study: str
    metric: str
    unit: str
    key: str
    tuned: bool
    code_sha256: str
    made_by: dict[str, list[str]]
    runs: list[RunReport]


Found = tuple[Report, RunReport]  # a report, and an entry of it


def read_report(path: Path) -> Report:
    """A report, checked.

    Raises:
        UserError: the file is missing, a link, damaged, or not what `ibnorm-hf compare` writes.
    """
    path = require_regular(path, path.parent)
    report: Report = check(read_object(path), Report, path)
    for arms in (report["arms"], *(budget["arms"] for budget in report.get("budgets", {}).values())):
        for name, arm in arms.items():
            if arm["verdict"] not in VERDICTS:
                said = f"of {one_line(name, 40)} it says {one_line(repr(arm['verdict']), 40)}, which is no verdict"
                raise UserError(f"{path} is not what it should be: {said}; make it again")
    return report


def shown_as(report: Report) -> float:
    """What a cost of the report is multiplied with to be shown: accuracy is kept as its negative."""
    return -1.0 if report.get("key") == "top1" or report.get("metric") == "accuracy" else 1.0


def shown_p(p: float | int) -> str:
    """A p-value as text."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def study_of(source: Path, model: Path, study: Path | None = None) -> Found | None:
    """The report that a run is in, and its entry there; None where no study holds these weights.

    Args:
        source: the run folder.
        model: its weights.
        study: a study's folder or its report.json; by default that in whose folder the run stands.

    Raises:
        UserError: the report cannot be read, or the study that was named does not hold this run.
    """
    path = _report_beside(source) if study is None else _report_in(study)
    if path is None:
        return None
    report = read_report(path)
    found = _entry(report, Run(source), fingerprint([model]))
    if found is None and study is not None:
        raise UserError(f"{path} holds no run with the weights of {source}; name the study that made them")
    return None if found is None else (report, found)


def _report_in(study: Path) -> Path:
    places = (study / "report" / REPORT, study / REPORT)
    return next((path for path in places if path.exists()), places[0]) if study.is_dir() else study


def _report_beside(run: Path) -> Path | None:
    """Where the report of the study is in whose folder a run stands (STUDY/runs/RUN); None where there is none."""
    path = run.resolve().parent.parent / "report" / REPORT
    return path if path.exists() or path.is_symlink() else None


def _entry(report: Report, run: Run, model_sha256: str) -> RunReport | None:
    """The entry of a report that is this run, None where no one is.

    Weights decide: an entry that names them is theirs alone. An entry without them, of a study that kept no weights,
    is the run of that name (recipe, data and code make it) with that very result. A claim comes before other phases.
    """
    entries = sorted(report.get("runs", []), key=lambda entry: entry["phase"] != "claim")
    for entry in entries:
        if entry["model_sha256"] is not None and entry["model_sha256"] == model_sha256:
            return entry
    scores: Any = run.validation
    value = scores.get(report.get("key", "loss"))
    for entry in entries:
        unnamed = entry["model_sha256"] is None and entry["measured"] is not None
        if unnamed and entry["run"] == run.name and entry["measured"] == value:
            return entry
    return None
