# SPDX-License-Identifier: Apache-2.0
"""Whether what a file holds has the form that a TypedDict gives it."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from .errors import UserError, one_line

Number = int | float


def check(content: Any, form: Any, where: str | Path) -> Any:
    """Return ``content`` if it has the form of a TypedDict, or of a type that stands in one; further keys are no fault.

    Raises:
        UserError: naming the first key that holds something else.
    """
    wrong = mismatch(content, form, "")
    if wrong is not None:
        raise UserError(f"{where} is not what it should be: {wrong}; make it again, or correct it")
    return content


def mismatch(value: Any, form: Any, key: str = "") -> str | None:
    """A phrase for the first thing in which ``value``, called ``key``, is not of the form; None where it is."""
    if form is Any:
        return None
    if hasattr(form, "__required_keys__"):  # a TypedDict
        if not isinstance(value, dict):
            return _phrase(key, "a mapping", value)
        if missing := sorted(form.__required_keys__ - value.keys()):
            return f"key {f'{key}.' if key else ''}{missing[0]} is missing"
        hints = get_type_hints(form)
        return _first(mismatch(value[k], hints[k], f"{key}.{k}" if key else k) for k in hints if k in value)
    origin, inner = get_origin(form), get_args(form)
    if origin in (Union, types.UnionType):
        return (
            None if any(mismatch(value, choice, key) is None for choice in inner) else _phrase(key, _text(form), value)
        )
    if origin is dict:
        if not isinstance(value, dict):
            return _phrase(key, "a mapping", value)
        return _first(mismatch(item, inner[1], f"{key}.{one_line(k, 40)}") for k, item in value.items())
    if origin is list:
        if not isinstance(value, list):
            return _phrase(key, "a list", value)
        return _first(mismatch(item, inner[0], f"{key}[{number}]") for number, item in enumerate(value))
    fits = isinstance(value, form) and (form is bool or not isinstance(value, bool))
    return None if fits else _phrase(key, _text(form), value)


def _first(found: Any) -> str | None:
    return next((text for text in found if text is not None), None)


def _text(form: Any) -> str:
    words = {str: "a text", int: "a whole number", float: "a number", type(None): "null", dict: "a mapping"}
    choices = [words.get(get_origin(c) or c, "a list") for c in get_args(form)] or [words.get(form, str(form))]
    return " or ".join(dict.fromkeys(choices))


def _phrase(key: str, wanted: str, value: Any) -> str:
    return f"{f'key {key}' if key else 'it'} holds {one_line(repr(value), 40)} instead of {wanted}"
