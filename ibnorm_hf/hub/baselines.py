# SPDX-License-Identifier: Apache-2.0
"""What a card says beside baselines: the part of a study's report in which the run took part, or "not measured"."""

from __future__ import annotations

from ..common.study import ArmReport, Found, Report, shown_as, shown_p
from .results import NOT_MEASURED, table

_PHASES = {
    "tuning": " Its seed chose a learning rate, and is no witness of the verdict.",
    "curve": " It measured the baseline's own noise or curve, and is not behind the verdict.",
}
_TUNED = {
    True: " Every arm was tuned on the same grid by other seeds.",
    False: " A declared ablation: all arms train at one rate, so this is no ranking of tuned arms.",
}


def beside_baselines(found: Found | None) -> str:
    """The section of a card."""
    if found is None:
        return f"Beside baselines: {NOT_MEASURED}. `ibnorm-hf compare` measures it."
    report, run = found
    first = f"Study {quoted(report.get('study', ''))}, arm {quoted(run['arm'])}, budget {run['budget']:g}x, seed "
    first += f"{run['seed']}.{_PHASES.get(run['phase'], '')}"
    budget = report.get("budgets", {}).get(f"{run['budget']:g}")
    if report["refused"]:
        reasons = [f"- {' '.join(reason.split())}." for reason in report["refused"]]
        return "\n".join([first, "", "No arm is ranked, because the comparison would not be fair:", "", *reasons])
    if budget is None or run["arm"] not in budget["arms"]:
        return f"{first} At this budget nothing was compared."
    unit, factor = report.get("unit", "nats"), shown_as(report)
    rule = (
        f"Differences to {quoted(report['baseline'])} over the claim seeds {', '.join(map(str, budget['seeds']))}, in "
        f"{unit}, {'above' if factor < 0 else 'below'} 0 where an arm is better; two arms count as equal within "
        f"{report['margin']:g}. The 99 % intervals hold for all arms together (seeds are blocks; Dunnett)."
    )
    header = ["arm", "verdict", "difference", "99 % interval", "p", "mean", "seeds", "learning rate"]
    rows = [_row(report, name, arm, own=name == run["arm"]) for name, arm in budget["arms"].items()]
    flips = [f"- {' '.join(flip.split())}." for flip in report.get("flips", [])]
    lines = [first, "", rule + (_TUNED[report["tuned"]] if "tuned" in report else ""), "", table(header, rows)]
    return "\n".join([*lines, "", *flips] if flips else lines)


def _row(report: Report, name: str, arm: ArmReport, *, own: bool) -> list[str]:
    factor, baseline = shown_as(report), name == report["baseline"]
    mean, p = arm["mean"], arm["p"]
    shown = interval = ""
    if not baseline and arm["difference"] is not None and arm["low"] is not None and arm["high"] is not None:
        ends = sorted((arm["low"] * factor, arm["high"] * factor))
        shown, interval = f"{arm['difference'] * factor:+.4f}", f"{ends[0]:+.4f} to {ends[1]:+.4f}"
    more = f"; {needed} seeds would decide" if (needed := arm.get("seeds_to_decide")) else ""
    more += f"; {diverged} diverged" if (diverged := arm.get("diverged")) else ""
    return [
        quoted(name) + (" (this model)" if own else ""),
        "baseline" if baseline else arm["verdict"] + more,
        shown,
        interval,
        shown_p(p) if shown and p is not None else "",
        NOT_MEASURED if mean is None else f"{mean * factor:.4f}",
        str(arm["n"]),
        f"{arm['learning_rate']:g}",
    ]


def quoted(name: str) -> str:
    """A name as code, on one line."""
    return "`" + " ".join(name.replace("`", "'").split()) + "`"
