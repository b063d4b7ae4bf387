# SPDX-License-Identifier: Apache-2.0
"""In what the measurement of a task is not the leaderboard's own, as a phrase that stands wherever its number does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .bounds import Leaf

_GENERATED = ("exact_match", "inst_level_strict_acc")  # metrics of tasks that are answered by generating text


def remark_of(content: Mapping[str, Any], leaf: Leaf, n: int, *, excluded: bool = False) -> str:
    """What is not full about a leaf: a part of the questions, other options, fewer new tokens, cut prompts; or "".

    Args:
        content: of a results file; what `ibnorm-hf eval` did itself stands in its block ``ibnorm``.
        n: questions that were answered.
        excluded: whether the part of the questions is explained elsewhere.
    """
    phrases = []
    if n < leaf.documents and not excluded:
        phrases.append(f"{n:,} of {leaf.documents:,} questions")
    config, ours = table(content, "config"), table(content, "ibnorm")
    if config.get("gen_kwargs") and leaf.metrics[0] in _GENERATED:
        phrases.append(f"gen_kwargs {config['gen_kwargs']}")
    return "; ".join([*phrases, *told(ours, leaf.task)])


def told(ours: Mapping[str, Any], task: str) -> list[str]:
    """Phrases on what did not fit the model's positions, from the block ``ibnorm`` of a results file."""
    phrases = []
    clamped, cut = table(table(ours, "clamped"), task), table(table(ours, "prompts"), task)
    if clamped:
        phrases.append(f"{_count(clamped, 'given')} of {_count(clamped, 'asked')} new tokens")
    if cut.get("cut"):
        kept = cut.get("room", cut.get("positions"))
        tokens = f" (the longest to {kept:,} of {_count(cut, 'longest')} tokens)" if isinstance(kept, int) else ""
        phrases.append(f"{_count(cut, 'cut')} of {_count(cut, 'prompts')} prompts cut{tokens}")
    return phrases


def table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping that a results file has under a key; empty where there is none, or something else."""
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _count(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    return f"{value:,}" if isinstance(value, int) else "?"


def summary(remarks: Mapping[str, str]) -> list[str]:
    """One line on all tasks that are not full measurements, if there are any; task -> phrase."""
    found = {task: text for task, text in remarks.items() if text}
    if not found:
        return []
    first = next(iter(found))
    return [f"no full measurement in {len(found)} tasks, first {first}: {found[first]}"]
