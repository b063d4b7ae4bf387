# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, the same bytes for the same numbers. Colours hold for readers who see few of them."""

from __future__ import annotations

import io
import math
import statistics
from dataclasses import dataclass
from typing import Any

from ..common.errors import printable

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f00")
_MARKS = "osD^vP*X"
_MOST_COLOURED = 16  # arms; of more, no legend could be read
_MOST_LINES = 150  # of intervals in one picture


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


def _label(name: str) -> str:
    """An arm's name as a picture can show it: no formula, no hidden label, not without end."""
    text = printable(name)
    text = text if len(text) <= 32 else f"{text[:31]}…"
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")


def _drawn(arms: list[str], baseline: str) -> dict[str, dict[str, Any]]:
    """How each arm's line is drawn: the baseline black, and of very many others none with a colour of its own."""
    others = [arm for arm in arms if arm != baseline]
    if len(others) <= _MOST_COLOURED:
        drawn = {arm: {**_style(i), "ls": ("-", "--")[i // len(_COLOURS) % 2]} for i, arm in enumerate(others)}
        drawn = {arm: {**style, "label": _label(arm), "lw": 1.5} for arm, style in drawn.items()}
    else:
        grey = {"color": "#999999", "marker": ".", "alpha": 0.6, "ls": "-", "lw": 1.0}
        drawn = {arm: {**grey, "label": "other arms" if i == 0 else None} for i, arm in enumerate(others)}
    black = {"color": "black", "marker": "o", "ls": "-", "lw": 2.5, "zorder": 5}
    return drawn | {baseline: {**black, "label": f"{_label(baseline)} (baseline)"}}


def _beside(axes: Any) -> None:
    """The legend to the right, where it hides nothing."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def _better(unit: Any) -> str:
    return "higher is better" if unit.factor < 0 else "lower is better"


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKS[index // len(_COLOURS) % len(_MARKS)]}


def _figure(width: float = 8.5, height: float = 4.2) -> tuple[Any, Any]:
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
    if not judged["refused"]:  # the best first, as in the tables
        names.sort(key=lambda name: (judged["arms"][name]["difference"], name))
    more = ""
    if len(names) * len(budgets) > _MOST_LINES:
        budgets, more = budgets[-1:], " The largest budget alone."
    if len(names) > _MOST_LINES:
        far = sorted(names, key=lambda name: -abs(judged["arms"][name]["difference"]))[:_MOST_LINES]
        names, more = [n for n in names if n in far], f"{more} The {_MOST_LINES} arms farthest from the baseline."
    figure, axes = _figure(8.5, 1.4 + 0.3 * len(names) * max(1, len(budgets)))
    margin = judged["margin"]
    axes.axvspan(-margin, margin, color="#999999", alpha=0.2, lw=0, label=f"margin, ±{margin:g} {unit.unit}")
    axes.axvline(0, color="black", lw=1)
    reach = _reach([judged["budgets"][budget]["arms"] for budget in budgets], names, margin)
    for index, budget in enumerate(budgets):
        found = judged["budgets"][budget]["arms"]
        for place, name in enumerate(names):
            arm = found.get(name)
            if arm is not None and arm["difference"] is not None:
                y = place + 0.7 * ((index + 0.5) / len(budgets) - 0.5)
                _interval(axes, arm, unit.factor, y, reach, _style(index))
        axes.plot([], [], **_style(index), label=f"budget {budget}x")
    axes.set_xlim(-reach, reach)
    axes.set_yticks(range(len(names)), [f"{_label(name)}: {_verdict(judged, name)}" for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axes.set_xlabel(f"{unit.name}, arm minus {_label(judged['baseline'])} ({unit.unit})")
    better = "right" if unit.factor < 0 else "left"
    axes.set_title(f"Paired differences, 99 % intervals for all arms together; {better} is better", fontsize=10)
    _beside(axes)
    caption = f"Difference of each arm to {judged['baseline']} with its interval, by budget.{more}"
    return _png(figure, "differences.png", caption)


def _verdict(judged: dict[str, Any], name: str) -> str:
    return "not ranked" if judged["refused"] else judged["arms"][name]["verdict"]


def _reach(budgets: list[dict[str, Any]], names: list[str], margin: float) -> float:
    """Half the width of the picture: all arms that are near, so that one far away does not press them together."""
    there = [arms[name] for arms in budgets for name in names if name in arms]
    ends = [max(-arm["low"], arm["high"]) for arm in there if arm["difference"] is not None]
    near = [end for end in ends if end <= 12 * margin] or [min(ends)]
    return 1.1 * max(2 * margin, *near)


def _interval(axes: Any, arm: dict[str, Any], factor: float, y: float, reach: float, style: dict[str, Any]) -> None:
    """A difference with its interval; beyond the picture an arrow with its value."""
    middle, ends = arm["difference"] * factor, sorted((arm["low"] * factor, arm["high"] * factor))
    axes.plot(ends, [y, y], color=style["color"], lw=2)
    if abs(middle) < reach:
        axes.plot([middle], [y], **style, ls="")
        return
    right = middle > 0
    edge = (1 if right else -1) * reach * 0.985
    axes.plot([edge], [y], color=style["color"], marker=">" if right else "<", ls="", clip_on=False)
    align: Any = "right" if right else "left"
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # an interval may run below its number
    words = {"fontsize": 8, "color": style["color"], "bbox": ground}
    axes.text(edge * 0.97, y, f"{middle:+.3g}", ha=align, va="center", **words)


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
    drawn = _drawn(sorted(points), study.judged["baseline"])
    for arm, rates in sorted(points.items()):
        x = sorted(rates)
        axes.plot(x, [statistics.fmean(rates[rate]) for rate in x], **drawn[arm], ms=5)
    axes.set_xscale("log")
    grid = sorted({rate for rates in points.values() for rate in rates})
    if len(grid) <= 12:
        axes.set_xticks(grid, [f"{rate:g}" for rate in grid])
        axes.set_xticks([], minor=True)
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"{study.unit.name} ({study.unit.unit}), {_better(study.unit)}")
    axes.set_title(f"Sensitivity to the learning rate, tuning seeds, budget {budget:g}x", fontsize=10)
    _beside(axes)
    return _png(figure, "rates.png", "What each arm reaches at each learning rate of the grid; diverged runs left out.")


def _curves(study: Any) -> list[Picture]:
    made = []
    for budget, arms in sorted(study.curves.items(), key=lambda item: float(item[0])):
        figure, axes = _figure()
        drawn = _drawn(sorted(arms), study.judged["baseline"])
        early = []
        for arm, runs in sorted(arms.items()):
            steps: dict[float, list[float]] = {}
            for step, value in runs:
                steps.setdefault(step, []).append(value)
            x = sorted(steps)
            middle = [statistics.fmean(steps[step]) for step in x]
            style = drawn[arm] | {"marker": ""}
            axes.plot(x, middle, **style)
            low, high = [min(steps[s]) for s in x], [max(steps[s]) for s in x]
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
            early.append(middle[len(middle) // 8])
        if len(early) > 1:
            # The first fall is the same for all, and would press the rest together.
            axes.set_ylim(top=max(early))
        axes.set_xlabel("step")
        axes.set_ylabel(f"training {study.unit.name} ({study.unit.unit}), {_better(study.unit)}")
        axes.set_title(f"Training curves, claim seeds, budget {budget}x: mean, lowest to highest seed", fontsize=10)
        _beside(axes)
        made.append(
            _png(
                figure,
                f"curves-{budget}x.png",
                f"Loss by step at budget {budget}x; bands span the seeds; the first steps lie above.",
            )
        )
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
        axes.errorbar(x, middle, yerr=reach, **_style(index), label=_label(name), capsize=3, lw=1.4)
    axes.axhline(0, color="black", lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("lambda")
    axes.set_ylabel(f"{unit.name}, arm minus {_label(judged['baseline'])} ({unit.unit})")
    better = "above" if unit.factor < 0 else "below"
    axes.set_title(f"What lambda does, 99 % intervals for all arms together; {better} 0 is better", fontsize=10)
    _beside(axes)
    return _png(figure, "lambda.png", "Difference to the baseline by lambda.")
