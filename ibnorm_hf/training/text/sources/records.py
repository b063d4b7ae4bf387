# SPDX-License-Identifier: Apache-2.0
"""Records map columns to values: one is the text, two are a prompt and what follows it, or one a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...keys.arguments import DataArguments
from .base import BadRecords, Piece

ASSISTANT = "assistant"  # the role whose turns are learned
MAX_LINE_BYTES = 16 << 20  # a longer line is damage, not text


class Columns:
    """The columns of a recipe: which there must be, and the piece of a record."""

    def __init__(self, data: DataArguments) -> None:
        self.names = text_columns(data)
        self.chat = data.messages_column is not None

    def mark(self) -> Any:
        """What a fingerprint holds of the columns."""
        names = list(self.names.values())
        if self.chat:
            return {"messages": names[0]}
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
        if self.chat:
            yield from _conversation(values[0], where, bad)
            return
        prompt, text = (None, values[0]) if len(values) == 1 else values
        fault = record_fault(text) if len(values) == 1 else prompt_fault(prompt, text)
        if fault:
            bad.add(where, fault)
        else:
            yield Piece(text, True, prompt)


def text_columns(data: DataArguments) -> dict[str, str]:
    """Columns that hold the text of a record, by the keys that name them: one, or prompt and completion."""
    if data.messages_column is not None:
        return {"messages_column": data.messages_column}
    if data.prompt_column is None or data.completion_column is None:
        return {"text_column": data.text_column}
    return {"prompt_column": data.prompt_column, "completion_column": data.completion_column}


def _conversation(messages: Any, where: str, bad: BadRecords) -> Iterator[Piece]:
    if fault := messages_fault(messages):
        bad.add(where, fault)
        return
    # Columnar files give every turn every key that any turn has.
    turns = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
    yield Piece("\n".join(turn["content"] for turn in turns), True, messages=turns, where=where)


def messages_fault(messages: Any) -> str | None:
    """Why a value is no conversation with something to learn, or None."""
    if messages is None:
        return "no messages"
    if not isinstance(messages, list) or not messages:
        return "messages are not a list of turns"
    for turn in messages:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            return "a turn is not {role, content}"
        fault = record_fault(turn.get("content"))
        if fault and (fault != "empty" or turn["role"] == ASSISTANT):
            return f"{turn['role'][:20]}: {fault}"
    return None if any(turn["role"] == ASSISTANT for turn in messages) else "no turn of the assistant"


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
