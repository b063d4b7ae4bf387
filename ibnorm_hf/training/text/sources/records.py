# SPDX-License-Identifier: Apache-2.0
"""Records: mappings of columns to values, of which one is the text, or two are a prompt and what follows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...keys.arguments import DataArguments
from .base import BadRecords, Piece

MAX_LINE_BYTES = 16 << 20  # a longer line is damage, not text


class Columns:
    """The columns of a recipe: which there must be, and the piece of a record."""

    def __init__(self, data: DataArguments) -> None:
        self.names = text_columns(data)

    def mark(self) -> Any:
        """What a fingerprint holds of the columns."""
        names = list(self.names.values())
        return names if len(names) > 1 else names[0]

    def missing(self, names: Sequence[str]) -> str | None:
        """Which columns ``names`` lack, as the rest of a sentence; None if they are all there."""
        for key, column in self.names.items():
            if column not in names:
                return f"has no column '{column}', only {', '.join(names[:8])}; set {key}"
        return None

    def read(self, record: Any, where: str, bad: BadRecords) -> Iterator[Piece]:
        """The piece of a record, which maps columns to values; a bad record is counted and yields none."""
        values: list[Any] = [record.get(c) if isinstance(record, dict) else None for c in self.names.values()]
        prompt, text = (None, values[0]) if len(values) == 1 else values
        fault = record_fault(text) if len(values) == 1 else prompt_fault(prompt, text)
        if fault:
            bad.add(where, fault)
        else:
            yield Piece(text, True, prompt)


def text_columns(data: DataArguments) -> dict[str, str]:
    """Columns that hold the text of a record, by the keys that name them: one, or prompt and completion."""
    if data.prompt_column is None or data.completion_column is None:
        return {"text_column": data.text_column}
    return {"prompt_column": data.prompt_column, "completion_column": data.completion_column}


def record_fault(text: Any) -> str | None:
    """Why a record is no usable text, or None."""
    if text is None:
        return "no text"
    if not isinstance(text, str):
        return "text is not a string"
    if not text.strip():
        return "empty"
    if len(text) > MAX_LINE_BYTES:
        return f"over {MAX_LINE_BYTES >> 20} MiB"
    if "\0" in text:
        return "binary"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "lone surrogate"  # JSON can spell what no text contains
    return None


def prompt_fault(prompt: Any, completion: Any) -> str | None:
    """Why a prompt and its completion are no usable record, or None. A prompt may be empty, a completion not."""
    fault = record_fault(prompt)
    if fault and fault != "empty":
        return f"prompt: {fault}"
    fault = record_fault(completion)
    return f"completion: {fault}" if fault else None
