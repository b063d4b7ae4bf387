# SPDX-License-Identifier: Apache-2.0
"""One value of a key, from a file or from the command line, as the type that its dataclass declares."""

from __future__ import annotations

import re
import types
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from ...common import strict_yaml
from ...common.errors import UserError, did_you_mean

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_NULL = ("null", "none", "~")
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a mapping"}


def from_words(kind: Any, words: list[str]) -> Any:
    """The words after ``--key``, not yet fitted: none is true, several are a list, `{...}` and `[...]` are YAML."""
    if not words:
        return True if bool in _members(kind) else ""
    if len(words) > 1:
        return words
    word = words[0]
    if word[:1] in ("{", "["):
        try:
            return strict_yaml.loads(word, "command line")
        except UserError:
            return word
    return word


def fit(kind: Any, value: Any) -> Any:
    """``value`` as ``kind``, a type annotation; null stays None where the type allows it.

    Raises:
        ValueError: it is none of the type's values; the message is the end of a sentence about the key.
    """
    members = _members(kind)
    if value is None or (isinstance(value, str) and value.lower() in _NULL and type(None) in members):
        if type(None) in members:
            return None
        raise ValueError(f"null is not {describe(kind)}")
    choices = [m for m in members if isinstance(m, type) and issubclass(m, Enum)]
    if choices:  # `SchedulerType | str` means a name of that list
        return _choice(choices[0], value)
    for member in members:
        fitted = _fit_one(member, value)
        if fitted is not None:
            return fitted
    raise ValueError(f"{value!r} is not {describe(kind)}")


def _choice(kind: type[Enum], value: Any) -> Any:
    names = [str(item.value) for item in kind]
    if value is False and "no" in names:
        value = "no"  # as YAML reads the word
    if str(getattr(value, "value", value)) in names:
        return kind(value)
    raise ValueError(f"{str(value)!r} is not one of {', '.join(names)}{did_you_mean(value, names)}")


def _fit_one(kind: Any, value: Any) -> Any:
    """None where the value is not of this kind."""
    if kind is bool:
        found = _TRUTH.get(str(value).lower())
        return found if isinstance(value, (bool, int, str)) else None
    if kind is str:
        return None if isinstance(value, (bool, list, dict)) else str(value)
    if kind in (int, float):
        return _number(kind, value)
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if choice == value), None)
    if (get_origin(kind) or kind) is dict:
        return _plain_numbers(value) if isinstance(value, dict) else None
    if (get_origin(kind) or kind) is list:
        inner = (get_args(kind) or (str,))[0]
        if inner is object:  # entries that their key judges; one text is a text, and one mapping a list of it
            return value if isinstance(value, list) else [value] if isinstance(value, dict) else None
        items = value if isinstance(value, list) else [value]
        fitted = [_fit_one(inner, item) for item in items]
        return None if None in fitted or isinstance(value, dict) else fitted
    return value if isinstance(kind, type) and isinstance(value, kind) else None


def _plain_numbers(value: dict[str, Any]) -> dict[str, Any]:
    """`1e-5`, a text in YAML 1.1, as the number that it looks like."""
    return {
        key: float(item) if isinstance(item, str) and _EXPONENT.fullmatch(item) else item for key, item in value.items()
    }


def _number(kind: type, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = int(value) if isinstance(value, int) else float(value)
        if isinstance(value, str) and kind is int and not set(value) & set(".eE"):
            number = int(value)
    except (ValueError, OverflowError):
        return None
    if kind is float:
        try:
            return float(number)
        except OverflowError:
            return None
    return int(number) if number == number and abs(number) != float("inf") and int(number) == number else None


def _members(kind: Any) -> list[Any]:
    """The types of a union, in the order in which a value is tried: a text last."""
    if get_origin(kind) in (Union, types.UnionType):
        return sorted((m for k in get_args(kind) for m in _members(k)), key=lambda m: m is str)
    return [kind]


def describe(kind: Any) -> str:
    """The type in words: `a number or null`; what may be a list may be one of its items alone."""
    words = []
    for member in _members(kind):
        if member is type(None):
            continue
        if isinstance(member, type) and issubclass(member, Enum):
            return f"one of {', '.join(str(item.value) for item in member)}"
        origin = get_origin(member) or member
        if origin is list:
            inner = (get_args(member) or (str,))[0]
            words += [_NAMES[dict if inner is object else inner], "a list"]
        elif origin is Literal:
            words += [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in get_args(member)]
        else:
            words.append(_NAMES.get(origin, str(member)))
    return " or ".join([*dict.fromkeys(words), *(["null"] if type(None) in _members(kind) else [])])
