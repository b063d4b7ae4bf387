# SPDX-License-Identifier: Apache-2.0
"""Every run measured, arms held against each other, files and pictures written."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.paths import write_atomic, write_json
from . import differences
from .figures import draw
from .measure import QUANTITIES, Options
from .record import record
from .runs import Source, gather, is_variance_centric

WHAT = (
    "I(X;T) of a deterministic network is infinite. Measured instead: what a linear probe reads of Y (a lower bound of "
    "I(Y;T)); at most how much passes a declared channel T + noise; and the matrix Renyi figures, which are geometry "
    "and move when only the norm is swapped."
)
_HEADLINES = ("usable", "ib", "renyi_ib", "soft", "neighbours", "effective_rank")


def analyze_runs(
    folders: Sequence[str],
    out: str | Path,
    source: Source,
    options: Options,
    *,
    placebo: bool,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Measure runs and write numbers (information.json, CSV), the table and the pictures into a folder.

    A run that was measured before, with the same weights and options, is read from ``out/runs``: the same command
    goes on where it was.

    Returns:
        the table for the terminal, as lines.

    Raises:
        UserError: runs are not comparable, not finished or damaged.
        OSError: the folder cannot be written.
    """
    arms, target = gather(list(folders)), Path(out)
    flags = {name: runs[0].flags for name, runs in arms.items()}
    records: dict[str, list[dict[str, Any]]] = {}
    (target / "runs").mkdir(parents=True, exist_ok=True)
    for name, runs in arms.items():
        for opened in runs:
            say(f"measuring {opened.run.folder}")
            keep = target / "runs" / f"{name.replace(' ', '-')}-seed{opened.seed}.json"
            made = record(opened, flags, source, options, placebo=placebo, keep=keep)
            records.setdefault(name, []).append(made)
    return tell(records, options, target)


def tell(records: Mapping[str, Sequence[Mapping[str, Any]]], options: Options, target: Path) -> list[str]:
    """Hold the arms of finished records against each other, and write every file; returns the table as lines.

    The baseline is the first arm that only divides by a spread, or else the first.
    """
    kinds = {name: str(found[0]["norm_type"]) for name, found in records.items()}
    baseline = next((name for name, kind in kinds.items() if is_variance_centric(kind)), next(iter(kinds)))
    rows = differences.differences(records, baseline)
    theorem = differences.theorem_1(records)
    write_json(target / "information.json", _whole(records, options, baseline, rows, theorem))
    _write_values(records, target / "information.csv")
    _write_differences(rows, target / "differences.csv")
    _write_theorem(theorem, target / "theorem1.csv")
    table = [*_table(rows, records, baseline), *_theorem_lines(theorem)]
    write_atomic(target / "table.txt", "\n".join(table) + "\n")
    return [*table, *(str(file) for file in draw(records, rows, target))]


def _whole(
    records: Mapping[str, Any], options: Options, baseline: str, rows: Sequence[Any], theorem: Sequence[Any]
) -> dict[str, Any]:
    return {
        "what": WHAT,
        "quantities": QUANTITIES,
        "options": options.as_dict(),
        "baseline": baseline,
        "arms": {name: sorted(made["seed"] for made in found) for name, found in records.items()},
        "differences": list(rows),
        "theorem1": list(theorem),
        "runs": [made for found in records.values() for made in found],
    }


def _write_values(records: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    head = ("run", "arm", "seed", "site", "number", "state", "norm", "quantity", "value", "low", "high", "shuffled")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for made in (made for found in records.values() for made in found):
            for site in made["sites"]:
                states = [("trained", made["arm"], site["trained"])]
                states += [("initial", made["arm"], site["initial"])] if "initial" in site else []
                states += [("placebo", norm, measured) for norm, measured in site.get("placebo", {}).items()]
                for state, norm, measured in states:
                    for name, found in measured.items():
                        start = (
                            made["run"],
                            made["arm"],
                            made["seed"],
                            site["site"],
                            site["number"],
                            state,
                            norm,
                            name,
                        )
                        low, high = found["interval"] or ("", "")
                        shuffled = "" if found["shuffled"] is None else found["shuffled"]
                        writer.writerow((*start, found["value"], low, high, shuffled))


def _write_differences(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    parts = ("trained", "initial", "swap", "rest")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = [f"{part}{end}" for part in parts for end in ("", "_low", "_high")]
        writer.writerow(("arm", "baseline", "site", "number", "quantity", "seeds", *ends, "verdict"))
        for row in rows:
            values: list[Any] = []
            for part in parts:
                found = row.get(part)
                values += ["", "", ""] if found is None else [found["value"], *(found["interval"] or ("", ""))]
            start = [row[key] for key in ("arm", "baseline", "site", "number", "quantity")]
            writer.writerow((*start, row["trained"]["seeds"], *values, row.get("verdict", "")))


def _write_theorem(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    counts = ("norms", "above", "below", "undecided", "mean")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = [f"{part}_{count}" for part in ("trained", "swap") for count in counts]
        writer.writerow(("arm", "against", "estimator", "beta", "seeds", *ends))
        for row in rows:
            found = [(row[part] or {}).get(count, "") for part in ("trained", "swap") for count in counts]
            writer.writerow((*(row[key] for key in ("arm", "against", "estimator", "beta", "seeds")), *found))


def _table(rows: Sequence[Mapping[str, Any]], records: Mapping[str, Sequence[Any]], baseline: str) -> list[str]:
    """One table: differences to the baseline, mean over all norms, with how many norms a swap alone explains."""
    seeds = {name: len(found) for name, found in records.items()}
    arms = f"arms (seeds): {', '.join(f'{name} ({count})' for name, count in seeds.items())}"
    lines = [WHAT, arms, *_seconds(records), ""]
    if not rows:
        return [*lines, "one arm: nothing to compare"]
    lines += [
        f"arm minus {baseline}, mean over the norms; verdicts count norms, by intervals over seeds",
        f"{'quantity':<52}{'arm':<16}{'trained':>9}{'initial':>9}{'swap':>9}{'rest':>9}  verdicts",
    ]
    for name in _HEADLINES:
        for arm in seeds:
            mine = [row for row in rows if row["arm"] == arm and row["quantity"] == name]
            if mine:
                parts = ["trained", "initial", "swap", "rest"]
                means = [_mean(mine, part) for part in parts]
                said = [row["verdict"] for row in mine if "verdict" in row]
                verdicts = ", ".join(f"{said.count(v)} {v}" for v in dict.fromkeys(said)) or "no placebo measured"
                numbers = "".join(f"{'' if m is None else f'{m:.3f}':>9}" for m in means)
                lines.append(f"{QUANTITIES[name]:<52}{arm:<16}{numbers}  {verdicts}")
    return lines


def _seconds(records: Mapping[str, Sequence[Any]]) -> list[str]:
    """What measuring a run took; records of earlier versions do not say it."""
    found = [made["seconds"] for runs in records.values() for made in runs if "seconds" in made]
    if not found:
        return []
    cpu, wall = (max(each[name] for each in found) for name in ("cpu", "wall"))
    return [f"seconds to measure a run, at most: {cpu:.0f} of the processor, {wall:.0f} of the clock"]


def _mean(rows: Sequence[Mapping[str, Any]], part: str) -> float | None:
    return sum(row[part]["value"] for row in rows) / len(rows) if part in rows[0] else None


def _theorem_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", "Theorem 1: IB value of an IBNorm at least that of the other (norms where above / below / undecided)"]
    for row in (row for row in rows if row["beta"] == 0.5):
        parts = []
        for part in ("trained", "swap"):
            if row[part]:
                parts.append(f"{part} {row[part]['above']}/{row[part]['below']}/{row[part]['undecided']}")
        once = "; one seed: signs only" if row["seeds"] == 1 else ""
        lines.append(f"  {row['arm']} against {row['against']}, {row['estimator']}, beta 0.5: {', '.join(parts)}{once}")
    return lines
