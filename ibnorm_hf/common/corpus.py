# SPDX-License-Identifier: Apache-2.0
"""What the key `corpus` of a recipe names: one source of text, a list of them, or a mixture of them by weight."""

from __future__ import annotations

from typing import Any


def corpus_names(value: Any) -> list[str]:
    """The names in a value of ``corpus`` or ``validation_corpus``, in their order; none for null."""
    if value is None:
        return []
    entries = value if isinstance(value, list) else [value]
    return [str(entry.get("name", "unknown") if isinstance(entry, dict) else entry) for entry in entries]


def corpus_label(value: Any) -> str:
    """The names as one text, for sentences and tables."""
    return ", ".join(corpus_names(value)) or "unknown"


def corpus_sources(description: Any) -> list[dict[str, Any]]:
    """The sources in the ``corpus`` of a ``data.json``: those of a list or mixture, or the only one."""
    if not isinstance(description, dict) or not description:
        return []
    inner = description.get("sources")
    return [one for one in inner if isinstance(one, dict)] if isinstance(inner, list) else [description]
