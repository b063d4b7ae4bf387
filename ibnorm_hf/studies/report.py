# SPDX-License-Identifier: Apache-2.0
"""A study's report: the same numbers as JSON, CSV, Markdown and a page, and rendering twice gives the same bytes.

Nothing in it depends on when or how fast a run was made: what the clock measured stands beside it, in ``timing.json``.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import UserError, one_line
from ..common.paths import write_atomic
from ..common.strict_json import dumps
from ..common.study import shown_p
from .page import page
from .pictures import Picture, draw_all
from .rows import Row, in_order
from .units import UNITS, Unit


@dataclass(frozen=True)
class Study:
    """What a report is made of: the judgement, the runs behind it, and what to say around them."""

    title: str
    judged: dict[str, Any]
    rows: list[Row]
    unit: Unit = UNITS["loss"]
    about: list[str] = field(default_factory=list)
    citations: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lambdas: dict[str, float] = field(default_factory=dict)


def write_report(study: Study, folder: Path) -> list[Path]:
    """Write report.json, report.md, report.html, runs.csv and the pictures; returns their paths.

    Raises:
        UserError: the folder cannot be written; each file there is then the old or the new one.
    """
    pictures = draw_all(study)
    contents = {picture.name: picture.png for picture in pictures} | {
        "report.json": dumps(study.judged, indent=1) + "\n",
        "runs.csv": runs_csv(study),
        "report.md": markdown(study, pictures),
        "report.html": page(study.title, sections(study, pictures), pictures),
    }
    try:
        for name, content in contents.items():
            write_atomic(folder / name, content)
    except OSError as error:
        why = f"report {folder} cannot be written: {error.strerror or one_line(error)}"
        raise UserError(f"{why}; free some room, or give another --out", exit_code=1) from None
    return [folder / name for name in contents]


def runs_csv(study: Study) -> str:
    """Every run ever started, one a line."""
    lines = study.runs or [_run(row) for row in in_order(study.rows)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _run(row: Row) -> dict[str, Any]:
    return {
        "arm": row.arm,
        "budget": f"{row.budget:g}",
        "learning_rate": f"{row.learning_rate:g}",
        "weight_decay": "" if row.weight_decay is None else f"{row.weight_decay:g}",
        "seed": row.seed,
        "phase": row.phase,
        "state": "diverged" if math.isinf(row.value) else "done",
        "loss": "" if math.isinf(row.value) else repr(row.value),
        "tokens": "" if row.tokens is None else row.tokens,
        "parameters": "" if row.parameters is None else row.parameters,
        "data_sha256": row.data_sha256 or "",
    }


Section = tuple[str, list[str], list[dict[str, Any]], list[Picture]]  # heading, sentences, table, pictures


_TABLES = {
    "At step 0": "Each arm's model before training, on the same few samples. Arms may differ in their norms alone: the "
    "parameters outside them must agree, and so must those of these that decay."
}


def sections(study: Study, pictures: list[Picture]) -> list[Section]:
    """The report's parts in order. Both renderings are made of these."""
    judged = study.judged
    parts: list[Section] = [("Verdict", _summary(study), [], [])]
    for budget in reversed(judged["budgets"]):
        parts.append((f"Budget {budget}x", _budget_text(study, budget), _table(study, budget), []))
    for name, lines in study.tables.items():
        parts.append((name, [_TABLES[name]] if name in _TABLES else [], lines, []))
    if pictures:
        parts.append(("Pictures", [], [], pictures))
    if study.citations:
        lines = [{"arm": arm, "source": text} for arm, text in sorted(study.citations.items())]
        parts.append(("Sources of the arms", [], lines, []))
    parts.append(("How to read this", _rules(study), [], []))
    return parts


def _summary(study: Study) -> list[str]:
    judged = study.judged
    if judged["refused"]:
        told = ["No arm is ranked, because the comparison would not be fair:"]
        return [*told, *(f"- {reason}." for reason in judged["refused"]), *study.about]
    told = []
    for verdict in ("better", "worse", "equivalent", "undecided"):
        names = [a for a, arm in judged["arms"].items() if arm["verdict"] == verdict and a != judged["baseline"]]
        told.append(f"- {verdict} ({len(names)}): {', '.join(names) or 'none'}.")
    first = f"Against {judged['baseline']}, at the largest budget:"
    return [first, *told, *(f"- {flip}." for flip in judged["flips"]), *study.about]


def _budget_text(study: Study, budget: str) -> list[str]:
    found = study.judged["budgets"][budget]
    seeds = ", ".join(map(str, found["seeds"]))
    error = "not measured" if found["error"] is None else f"{found['error']:.4g} {study.unit.unit}"
    told = [f"Claim seeds {seeds}. Error of one run after arm and seed means: {error}."]
    return [*told, *uneven_text(found, study.unit.unit)]


def uneven_text(found: dict[str, Any], unit: str) -> list[str]:
    """A sentence where the arms of a budget differ in their errors, so that the pooled one fits none of them."""
    if (uneven := found["uneven"]) is None:
        return []
    least, most = (f"{uneven[end]['error']:.3g} {unit} of {uneven[end]['arm']}" for end in ("least", "most"))
    return [
        f"The arms' errors differ, from {least} to {most}, more than chance does in one study of a thousand: "
        "pooled, the intervals are too wide for the steady arms and too narrow for the others. A study of the steady "
        "arms alone tells them apart with fewer seeds."
    ]


def _table(study: Study, budget: str) -> list[dict[str, Any]]:
    unit, lines = study.unit, []
    arms = study.judged["budgets"][budget]["arms"].items()
    if not study.judged["refused"]:  # the best first; without a ranking by name
        arms = sorted(arms, key=lambda item: (item[1]["difference"] is None, item[1]["difference"], item[0]))
    for name, arm in arms:
        missing = arm["difference"] is None
        ends = sorted((arm["low"] * unit.factor, arm["high"] * unit.factor)) if not missing else []
        base = name == study.judged["baseline"]
        line = {
            "arm": name,
            "verdict": "baseline" if base else arm["verdict"],
            f"difference ({unit.unit})": "" if base or missing else f"{arm['difference'] * unit.factor:+.4f}",
            "99 % interval": "" if base or missing else f"{ends[0]:+.4f} to {ends[1]:+.4f}",
            "p": "" if base or missing else shown_p(arm["p"]),
            "sign-flip p": "" if base or missing or arm["sign_flip_p"] is None else shown_p(arm["sign_flip_p"]),
            "seeds to decide": arm["seeds_to_decide"] or "",
            f"mean {unit.name} ({unit.unit})": "" if arm["mean"] is None else f"{arm['mean'] * unit.factor:.4f}",
            "seeds": arm["n"],
            "diverged": arm["diverged"],
            "learning rate": f"{arm['learning_rate']:g}",
        }
        if arm["weight_decay"] is not None:
            line["weight decay"] = f"{arm['weight_decay']:g}"
        lines.append(line | arm.get("effects", {}))
    if all(not line["sign-flip p"] for line in lines):
        for line in lines:
            del line["sign-flip p"]
    return lines


def _rules(study: Study) -> list[str]:
    judged = study.judged
    told = [
        f"Differences are arm minus {judged['baseline']}. Every arm was tuned on the same grid by seeds of their own; "
        "the claim seeds were not looked at before. Seeds are blocks, the error is pooled over the arms, and the "
        f"intervals hold for all arms of a budget together with {judged['level']:.0%} (Dunnett).",
        f"`equivalent`: the interval lies within the margin of {judged['margin']:g} {study.unit.unit} (two one-sided "
        "tests). `better` and `worse`: it excludes 0. `undecided`: neither; `seeds to decide` says how many would.",
        "A run that diverged counts as the worst loss of its budget, and its arm is never called better.",
    ]
    if made := judged.get("made_by"):
        of = [f"{name} {', '.join(values)}" for name, values in made.items() if values]
        told.append(f"The runs were made by code `{judged['code_sha256'][:16]}`: {'; '.join(of) or 'not recorded'}.")
    return told


def markdown(study: Study, pictures: list[Picture]) -> str:
    """The report as Markdown."""
    out = [f"# {study.title}", ""]
    for heading, sentences, lines, shown in sections(study, pictures):
        out += [f"## {heading}", ""]
        for sentence in sentences:
            out += [sentence] if sentence.startswith("- ") else [sentence, ""]
        if sentences and sentences[-1].startswith("- "):
            out.append("")
        if lines:
            names = list(dict.fromkeys(name for line in lines for name in line))
            out += ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
            out += ["| " + " | ".join(_cell(line.get(name, "")) for name in names) + " |" for line in lines]
            out.append("")
        for picture in shown:
            out += [f"![{picture.caption}]({picture.name})", "", picture.caption, ""]
    return "\n".join(out).rstrip() + "\n"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
