# SPDX-License-Identifier: Apache-2.0
"""Whether a tokenizer fits a model: judged by its largest id, since ids may have holes."""

from __future__ import annotations

from typing import Any


def largest_id(tokenizer: Any) -> int:
    """The largest id that a text can become; above ``len(tokenizer) - 1`` where the ids have holes."""
    return max([len(tokenizer) - 1, *tokenizer.get_vocab().values(), *tokenizer.all_special_ids])


def beyond(tokenizer: Any, rows: int) -> str | None:
    """What of a tokenizer an embedding of ``rows`` has no place for, as a phrase; None where every id has its row."""
    most = largest_id(tokenizer)
    if most < rows:
        return None
    return f"{len(tokenizer)} entries" + (f" with ids up to {most}" if most >= len(tokenizer) else "")
