# SPDX-License-Identifier: Apache-2.0
"""JSON as its standard has it: no nan, no infinity, no half characters; one sentence for a file that is not so."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError, one_line

MAX_BYTES = 64 << 20  # of one JSON object: results with every sample are far smaller
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character beyond 16 bits: alone, it is no text
_UNREADABLE = (OSError, ValueError, RecursionError)


def loads(text: str) -> Any:
    """Parse JSON. Nan and infinity, which older files hold, are None; half characters are replaced.

    Raises:
        ValueError: the text is no JSON, or an object holds a key twice, of which the last would win in silence.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(text, parse_constant=lambda name: None, parse_float=_finite, object_pairs_hook=_once)
    return _whole(value) if _HALF.search(text) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' is there twice")
    return content


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def dumps(content: Any, *, indent: int | None = 2, sort_keys: bool = True) -> str:
    """JSON text; raises ValueError for nan and infinity, since they are not JSON."""
    return json.dumps(content, indent=indent, sort_keys=sort_keys, allow_nan=False)


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numbers that are none become None, and what JSON does not know its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """A file of UTF-8 text of at most ``limit`` bytes.

    Raises:
        UserError: it is missing, too large, no regular file, or no UTF-8.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for ever
        with os.fdopen(descriptor, "rb") as handle:
            content = handle.read(limit + 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check the path, or make the file again") from None
    except _UNREADABLE as error:
        raise UserError(f"{one_line(path)} is unreadable: {one_line(error, 200)}") from None
    if len(content) > limit:
        raise UserError(f"{path} is unreadable: it has more than {limit:,} bytes; is it the right file?")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is unreadable: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: the file is missing, unreadable, too large, or holds something else than an object.
    """
    text = read_text(path)
    try:
        content = loads(text)
    except _UNREADABLE as error:
        raise UserError(f"{path} is unreadable: {one_line(error, 200)}; make it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what it should be: a JSON object")
    return content


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file with one a line; lines that are none (the half one of a killed run) are left out.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            for text in handle:
                try:
                    line = loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict):
                    yield line
    except OSError as error:
        raise UserError(f"{path} is unreadable: {one_line(error, 200)}") from None
