# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, the same bytes for the same numbers. Colours hold for readers who see few of them."""

from __future__ import annotations

import io
import math
import statistics
from dataclasses import dataclass
from typing import Any

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
_MARKS = "osD^vP*X"


@dataclass(frozen=True)
class Picture:
    """A PNG with the sentence that goes under it."""

    name: str
    caption: str
    png: bytes


def draw_all(study: Any) -> list[Picture]:
    """Every picture for which the study has numbers."""
    made = [_differences(study), _rates(study), *_curves(study), _lambda(study)]
    return [picture for picture in made if picture is not None]


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKS[index // len(_COLOURS) % len(_MARKS)]}


def _figure(width: float = 7.5, height: float = 4.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: Any, name: str, caption: str) -> Picture:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return Picture(name, caption, out.getvalue())


def _differences(study: Any) -> Picture | None:
    judged, unit = study.judged, study.unit
    budgets = list(judged["budgets"])
    names = [n for n in judged["arms"] if n != judged["baseline"] and judged["arms"][n]["difference"] is not None]
    if not names:
        return None
    figure, axes = _figure(7.5, 1.4 + 0.3 * len(names) * max(1, len(budgets)))
    margin = judged["margin"]
    axes.axvspan(-margin, margin, color="#999999", alpha=0.2, lw=0, label=f"margin, ±{margin:g} {unit.unit}")
    axes.axvline(0, color="black", lw=1)
    for index, budget in enumerate(budgets):
        found = judged["budgets"][budget]["arms"]
        for place, name in enumerate(names):
            arm = found.get(name)
            if arm is None or arm["difference"] is None:
                continue
            ends = sorted((arm["low"] * unit.factor, arm["high"] * unit.factor))
            y = place + 0.7 * ((index + 0.5) / len(budgets) - 0.5)
            axes.plot(ends, [y, y], color=_COLOURS[index], lw=2)
            label = f"budget {budget}x" if name == names[0] else None
            axes.plot([arm["difference"] * unit.factor], [y], **_style(index), ls="", label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit.name}, arm minus {judged['baseline']} ({unit.unit})")
    better = "right" if unit.factor < 0 else "left"
    axes.set_title(f"Paired differences, 99 % intervals for all arms together; {better} is better", fontsize=10)
    axes.legend(fontsize=8)
    return _png(
        figure, "differences.png", f"Difference of each arm to {judged['baseline']} with its interval, by budget."
    )


def _rates(study: Any) -> Picture | None:
    points: dict[str, dict[float, list[float]]] = {}
    rows = [row for row in study.rows if row.phase == "tuning" and math.isfinite(row.value)]
    if not rows:
        return None
    budget = max(row.budget for row in rows)
    for row in rows:
        if row.budget == budget:
            points.setdefault(row.arm, {}).setdefault(row.learning_rate, []).append(row.value * study.unit.factor)
    if max(map(len, points.values())) < 2:
        return None
    figure, axes = _figure()
    for index, (arm, rates) in enumerate(sorted(points.items())):
        x = sorted(rates)
        axes.plot(x, [statistics.fmean(rates[rate]) for rate in x], **_style(index), label=arm, lw=1.5, ms=5)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"{study.unit.name} ({study.unit.unit})")
    axes.set_title(f"Sensitivity to the learning rate, tuning seeds, budget {budget:g}x", fontsize=10)
    axes.legend(fontsize=8, ncols=2)
    return _png(figure, "rates.png", "What each arm reaches at each learning rate of the grid; diverged runs left out.")


def _curves(study: Any) -> list[Picture]:
    made = []
    for budget, arms in sorted(study.curves.items()):
        figure, axes = _figure()
        for index, (arm, runs) in enumerate(sorted(arms.items())):
            steps: dict[float, list[float]] = {}
            for step, value in runs:
                steps.setdefault(step, []).append(value)
            x = sorted(steps)
            middle = [statistics.fmean(steps[step]) for step in x]
            colour = _COLOURS[index % len(_COLOURS)]
            axes.plot(x, middle, color=colour, lw=1.4, ls=("-", "--")[index // len(_COLOURS) % 2], label=arm)
            axes.fill_between(x, [min(steps[s]) for s in x], [max(steps[s]) for s in x], color=colour, alpha=0.15, lw=0)
        axes.set_xlabel("step")
        axes.set_ylabel(f"{study.unit.name} ({study.unit.unit})")
        axes.set_title(f"Training curves, claim seeds, budget {budget}x: mean, lowest to highest seed", fontsize=10)
        axes.legend(fontsize=8, ncols=2)
        made.append(_png(figure, f"curves-{budget}x.png", f"Loss by step at budget {budget}x; bands span the seeds."))
    return made


def _lambda(study: Any) -> Picture | None:
    judged, unit = study.judged, study.unit
    families: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for arm, value in study.lambdas.items():
        if arm in judged["arms"] and judged["arms"][arm]["difference"] is not None:
            families.setdefault(arm.split("@")[0], []).append((value, judged["arms"][arm]))
    families = {name: points for name, points in families.items() if len(points) > 2}
    if not families:
        return None
    figure, axes = _figure()
    for index, (name, points) in enumerate(sorted(families.items())):
        points = sorted(points, key=lambda point: point[0])
        x = [value for value, _ in points]
        middle = [arm["difference"] * unit.factor for _, arm in points]
        ends = [sorted((arm["low"] * unit.factor, arm["high"] * unit.factor)) for _, arm in points]
        reach = [
            [m - e[0] for m, e in zip(middle, ends, strict=True)],
            [e[1] - m for m, e in zip(middle, ends, strict=True)],
        ]
        axes.errorbar(x, middle, yerr=reach, **_style(index), label=name, capsize=3, lw=1.4)
    axes.axhline(0, color="black", lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("lambda")
    axes.set_ylabel(f"{unit.name}, arm minus {judged['baseline']} ({unit.unit})")
    axes.set_title("What lambda does, 99 % intervals for all arms together", fontsize=10)
    axes.legend(fontsize=8)
    return _png(figure, "lambda.png", "Difference to the baseline by lambda.")
