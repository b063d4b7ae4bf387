# SPDX-License-Identifier: Apache-2.0
"""Each trained difference beside the placebo's, and Theorem 1's inequality as it comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy import stats

from .measure import QUANTITIES, value_of
from .runs import is_ibnorm, is_variance_centric

Record = Mapping[str, Any]
BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
NONE, SWAP, PARTLY, BEYOND, ONE = (
    "no difference seen",
    "a swap alone explains it",
    "a swap explains a part",
    "beyond a swap",
    "one seed: not judged",
)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds, its 95 % interval by Student's t (None for one seed), and their number."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return {"value": mean, "interval": None, "seeds": len(values)}
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return {"value": mean, "interval": [mean - half, mean + half], "seeds": len(values)}


def excludes_zero(found: Mapping[str, Any]) -> bool:
    """Whether an interval is there and does not hold 0."""
    return found["interval"] is not None and not found["interval"][0] <= 0 <= found["interval"][1]


def differences(records: Mapping[str, Sequence[Record]], baseline: str) -> list[dict[str, Any]]:
    """A row an arm, site and quantity: arm minus baseline, paired by seed.

    Args:
        records: arm to the records of its runs.
        baseline: the arm that the others are held against.

    Returns:
        ``trained``; ``initial``, before the first step; ``swap``: the same captured input through both norms, mean
        over the inputs of both runs of a pair; ``rest``, trained minus swap; and ``verdict``: with the intervals over
        seeds, whether a swap alone explains the trained difference. The last three only where a placebo was measured.
    """
    rows = []
    for arm in records:
        if arm == baseline:
            continue
        pairs = paired(records[arm], records[baseline])
        for index, site in enumerate(records[arm][0]["sites"]):
            for name in QUANTITIES:
                if name in site["trained"] and pairs:
                    rows.append(
                        _row(arm, baseline, site, name, [(a["sites"][index], b["sites"][index]) for a, b in pairs])
                    )
    return rows


def paired(arm: Sequence[Record], baseline: Sequence[Record]) -> list[tuple[Record, Record]]:
    """The records of two arms that have the same seed."""
    others = {record["seed"]: record for record in baseline}
    return [(record, others[record["seed"]]) for record in arm if record["seed"] in others]


def swap_of(site: Mapping[str, Any], of: Callable[[Mapping[str, Any]], float], arm: str, baseline: str) -> float:
    """What a swap changes at one captured input."""
    return of(site["placebo"][arm]) - of(site["placebo"][baseline])


def _row(arm: str, baseline: str, site: Mapping[str, Any], name: str, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    def of(measured: Mapping[str, Any]) -> float:
        return value_of(measured, name)

    trained = [of(a["trained"]) - of(b["trained"]) for a, b in pairs]
    row = {
        "arm": arm,
        "baseline": baseline,
        "site": site["site"],
        "number": site["number"],
        "quantity": name,
        "trained": summary(trained),
    }
    if "placebo" not in site:
        return row
    swap = [(swap_of(a, of, arm, baseline) + swap_of(b, of, arm, baseline)) / 2 for a, b in pairs]
    rest = [t - s for t, s in zip(trained, swap, strict=True)]
    row["initial"] = summary([of(a["initial"]) - of(b["initial"]) for a, b in pairs])
    row["swap"], row["rest"] = summary(swap), summary(rest)
    row["verdict"] = verdict(row["trained"], row["swap"], row["rest"])
    return row


def verdict(trained: Mapping[str, Any], swap: Mapping[str, Any], rest: Mapping[str, Any]) -> str:
    """Which part of a trained difference a swap alone explains; not judged on one seed."""
    if trained["interval"] is None:
        return ONE
    if not excludes_zero(trained):
        return NONE
    if not excludes_zero(rest):
        return SWAP
    # A part: the swap goes the same way, and training adds to it or takes from it.
    return PARTLY if excludes_zero(swap) and swap["value"] * trained["value"] > 0 else BEYOND


def theorem_1(records: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """Theorem 1's inequality, measured: IB value of an IBNorm at least that of a norm that only divides by a spread.

    For every such pair of arms, estimator and beta: at how many norms the difference is above 0, below 0, or has 0 in
    its interval over seeds; the same of the placebo, which no learning has touched. Reported as it comes out; public
    reviews call the theorem's proof invalid. Without two seeds nothing is judged, and the row counts signs only.
    """
    rows = []
    for arm, other, of, estimator, beta in _claims(records):
        pairs = paired(records[arm], records[other])
        if not pairs:
            continue
        row: dict[str, Any] = {"arm": arm, "against": other, "estimator": estimator, "beta": beta, "seeds": len(pairs)}
        held = []
        for index, site in enumerate(records[arm][0]["sites"]):
            sites = [(a["sites"][index], b["sites"][index]) for a, b in pairs]
            if math.isnan(of(site["trained"])):
                break
            trained = summary([of(a["trained"]) - of(b["trained"]) for a, b in sites])
            swap = None
            if "placebo" in site:
                swap = summary([(swap_of(a, of, arm, other) + swap_of(b, of, arm, other)) / 2 for a, b in sites])
            held.append((trained, swap))
        if held:
            row["trained"] = _count([trained for trained, _ in held])
            row["swap"] = _count([swap for _, swap in held if swap is not None]) if held[0][1] else None
            rows.append(row)
    return rows


def _claims(
    records: Mapping[str, Sequence[Record]],
) -> list[tuple[str, str, Callable[[Mapping[str, Any]], float], str, float]]:
    kinds = {arm: str(found[0]["norm_type"]) for arm, found in records.items()}
    estimators = {"probe and channel": ("usable", "channel"), "matrix Renyi": ("renyi_labels", "renyi_input")}
    return [
        (arm, other, _ib_of(*names, beta), estimator, beta)
        for arm, kind in kinds.items()
        for other, plain in kinds.items()
        if is_ibnorm(kind) and is_variance_centric(plain)
        for estimator, names in estimators.items()
        for beta in BETAS
    ]


def _ib_of(labels: str, inputs: str, beta: float) -> Callable[[Mapping[str, Any]], float]:
    return lambda measured: value_of(measured, labels) - beta * value_of(measured, inputs)


def _count(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    judged = found[0]["interval"] is not None
    above = sum(1 for f in found if f["value"] > 0 and (excludes_zero(f) or not judged))
    below = sum(1 for f in found if f["value"] < 0 and (excludes_zero(f) or not judged))
    mean = math.fsum(f["value"] for f in found) / len(found)
    return {"norms": len(found), "above": above, "below": below, "undecided": len(found) - above - below, "mean": mean}
