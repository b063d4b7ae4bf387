# SPDX-License-Identifier: Apache-2.0
"""What the finished studies say, in a line each for README.md, and how each was run for model_cards/studies/README.md.

    python recipes/studies/summary.py [--write]

Prints both, or with --write puts the table between the markers `<!-- studies -->` of README.md and writes the page.
Both are made of `model_cards/studies/*/` alone: report.json, runs.csv, timing.json of `ibnorm-hf compare`.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ibnorm_hf.common.paths import write_atomic
from ibnorm_hf.common.strict_json import read_object
from ibnorm_hf.common.study import REPORT, VERDICTS, BudgetReport, Report, read_report, shown_as
from ibnorm_hf.studies.archive import ARCHIVE

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "model_cards" / "studies"
START, END = "<!-- studies -->", "<!-- /studies -->"
NONE = "No study is finished, so nothing was compared yet."


def reports(studies: Path = STUDIES) -> dict[str, Report]:
    """The reports by the name of their folder; raises UserError for one that is damaged."""
    return {path.parent.name: read_report(path) for path in sorted(studies.glob(f"*/{REPORT}"))}


def render(studies: Path = STUDIES, home: str = "model_cards/studies/") -> str:
    """README's table: a line a study. ``home`` leads from the page to the studies."""
    found = reports(studies)
    if not found:
        return NONE
    lines = ["| study | against | margin | claim seeds | verdicts |", "| --- | --- | --- | --- | --- |"]
    for name, report in found.items():
        budgets = report.get("budgets", {})
        counts = sorted({len(budget["seeds"]) for budget in budgets.values()})
        cells = [
            f"[{name}]({home}{name}/report.md)",
            f"`{report['baseline']}`",
            f"{report['margin']:g} {report.get('unit', 'nats')}",
            " to ".join(map(str, dict.fromkeys((counts or [0])[:: max(1, len(counts) - 1)]))),
            verdicts(report),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def verdicts(report: Report) -> str:
    """Every arm's verdict at every budget; the reasons instead, where nothing is ranked."""
    if report["refused"]:
        return "not ranked: " + "; ".join(" ".join(reason.split()) for reason in report["refused"])
    budgets = report.get("budgets", {})
    told = [f"**{name}x** {at_budget(report, budget)}" for name, budget in budgets.items()]
    return "<br>".join([*told, *(f"{' '.join(flip.split())}" for flip in report.get("flips", []))])


def at_budget(report: Report, budget: BudgetReport) -> str:
    """The arms by verdict, with differences where there is one to tell."""
    parts = []
    for verdict in VERDICTS:
        arms = [
            f"`{name}`" + (f" {(arm['difference'] or 0.0) * shown_as(report):+.3f}" if verdict in VERDICTS[:2] else "")
            for name, arm in budget["arms"].items()
            if name != report["baseline"] and arm["verdict"] == verdict
        ]
        if arms:
            parts.append(f"{verdict}: {', '.join(arms)}")
    return "; ".join(parts) or "nothing compared"


def page(studies: Path = STUDIES) -> str:
    """model_cards/studies/README.md."""
    lines = [
        "# Studies",
        "",
        "Reports of `ibnorm-hf compare`, a folder each, as it wrote them. `report.md` is the one to read,",
        "`report.html` the same with tables that sort; `runs.csv` has every run ever started, `timing.json` what the",
        "clock measured. This page and README's table are made of them by `python recipes/studies/summary.py --write`.",
        "",
        render(studies, home=""),
    ]
    for name, report in reports(studies).items():
        lines += ["", f"## {name}", "", *(f"- {line}" for line in how(studies / name, report))]
    return "\n".join(lines) + "\n"


def how(folder: Path, report: Report) -> list[str]:
    """How a study was run, from its own files."""
    own = (folder / "study.yaml").is_file()
    recipe = f"recipes/studies/{folder.name}.yaml"
    file = "study.yaml" if own else recipe if (ROOT / recipe).is_file() else None
    link = "not kept" if file is None else f"[{Path(file).name}]({f'{folder.name}/{file}' if own else f'../../{file}'})"
    told = [f"Its file: {link}. {'Tuned on one grid.' if report.get('tuned', True) else 'A declared ablation.'}"]
    for name, budget in report.get("budgets", {}).items():
        seeds = ", ".join(map(str, budget["seeds"])) or "none"
        error = budget.get("error")
        spread = "not measured" if error is None else f"{error:.4g} {report.get('unit', 'nats')}"
        told.append(f"Budget {name}x: {len(budget['arms'])} arms, claim seeds {seeds}, error of one run {spread}.")
    if (folder / "runs.csv").is_file():
        with open(folder / "runs.csv", newline="", encoding="utf-8") as handle:
            runs = {line.get("run") or number: line for number, line in enumerate(csv.DictReader(handle))}
        states = Counter(line.get("state") or "?" for line in runs.values())
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        kept = f" `--from` goes on from [them]({folder.name}/{ARCHIVE})." if (folder / ARCHIVE).is_file() else ""
        told.append(f"Runs: {counts}.{kept}")
    if (folder / "timing.json").is_file():
        timing: dict[str, dict[str, Any]] = read_object(folder / "timing.json")
        for name, arms in timing.items():
            medians = [arm["median"] for arm in arms.values()]
            low, high = min(medians), max(medians)
            told.append(f"Training of a run at budget {name}x: {low:.0f} to {high:.0f} s, medians of the arms.")
    made = [f"{kind} {', '.join(values)}" for kind, values in report.get("made_by", {}).items() if values]
    told.append(f"Code of the runs: {'; '.join([report.get('code_sha256', 'not recorded')[:16], *made])}.")
    return told


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write README's table and the page of the studies")
    if not parser.parse_args().write:
        print(f"{render()}\n\n{page()}", end="")
        return
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = f"{START}\n{render()}\n{END}"
    write_atomic(ROOT / "README.md", re.sub(f"{START}.*?{END}", lambda _: block, readme, flags=re.DOTALL))
    write_atomic(STUDIES / "README.md", page())


if __name__ == "__main__":
    main()
