# SPDX-License-Identifier: Apache-2.0
"""What a card says about a normalization, and whom it cites: the words of the registry of norms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from ..modeling.compression import get_compression
from ..modeling.create import get_spec, list_norms
from ..modeling.specs import STATUSES
from ..registration import _MODELS


@dataclass(frozen=True)
class NormFacts:
    """Formula and confidence are empty for norms that compress nothing; the text then has the whole formula."""

    text: str
    citation: str
    formula: str = ""
    confidence: str = ""


_COMPRESSES = (
    "Every normalization layer compresses each activation toward the mean of its area by {kind}, then "
    "standardizes, then applies the learned affine."
)
_OTHER = NormFacts("The normalization of the original architecture, unchanged.", "")


def _kind(name: str) -> str:
    """What may be said of a compression g: that it is bounded, only where it is."""
    far = torch.tensor([1e9, 1e15], dtype=torch.float64)
    near, beyond = get_compression(name).g(far).tolist()
    return "a bounded function g" if beyond - near < 1e-3 else "a function g that has no bound and never expands"


def norm_facts(norm_type: str | None) -> NormFacts:
    """What there is to say about a norm_type; None, or one that is not known here, is the architecture's own."""
    if norm_type is None or norm_type not in list_norms("batch"):
        return _OTHER
    spec = get_spec(norm_type)
    if spec.family == "ibnorm":
        formula = f"lambda g(d / lambda), {spec.formula.partition(', ')[2]}"
        return NormFacts(_COMPRESSES.format(kind=_kind(spec.name)), spec.citation, formula, spec.confidence)
    text = (
        f"A baseline, `{spec.name}`: {spec.meaning or spec.batch_meaning}, `{spec.formula}`, started at {spec.start}. "
        f"{spec.status.capitalize()}: {STATUSES[spec.status]}."
    )
    return NormFacts(text, spec.citation)


def norm_table(style: str = "table") -> list[str]:
    """The registry as lines of text, one norm each: for the terminal, or (``markdown``) README's table.

    A name in the column of norms that stands only in hosts with a BatchNorm is marked ``(images)``.
    """
    rows = [_row(name) for name in list_norms("batch")]
    if style == "markdown":
        head = ("`norm_type`", "class", "what it does", "formula", "status", "starts at", "options")
        return _markdown_table(head, [_markdown(row) for row in rows])
    return _aligned([(name, meaning, status, start) for name, _, meaning, _, status, start, _ in rows])


def host_table(style: str = "table") -> list[str]:
    """The registered hosts as lines of text, one model type each: its classes, and the field of its eps."""
    rows = []
    for config, heads in sorted(_MODELS.items(), key=lambda entry: str(entry[0].model_type)):
        eps = [f.name for f in fields(config) if re.fullmatch(r"\w+_norm_eps(ilon)?", f.name)]
        classes = dict.fromkeys(cls.__name__ for cls in heads.values())
        rows.append((config.model_type, ", ".join(classes), eps[0] if eps else "1e-5, BatchNorm's"))
    if style == "markdown":
        return _markdown_table(("model type", "classes", "eps"), rows)
    return _aligned([(kind, eps, classes) for kind, classes, eps in rows])


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(name: str) -> tuple[str, str, str, str, str, str, str]:
    spec = get_spec(name)
    cls = next(iter(spec.classes.values()))
    shown = f"torch.nn.{cls.__name__}" if cls.__module__.startswith("torch.") else cls.__name__
    sure = spec.confidence.partition(":")[0]
    status = f"{spec.status}, {sure}" if sure and sure != spec.status else spec.status
    return name, shown, spec.meaning or spec.batch_meaning, spec.formula, status, spec.start, " ".join(spec.options)


def _markdown(row: tuple[str, ...]) -> list[str]:
    name, cls, meaning, formula, status, start, options = row
    images = "" if name in list_norms() else " (images)"
    formula = formula.replace("|", "\\|")
    return [
        f"`{name}`{images}",
        f"`{cls}`",
        meaning,
        f"`{formula}`",
        status,
        start,
        ", ".join(f"`{option}`" for option in options.split()),
    ]
