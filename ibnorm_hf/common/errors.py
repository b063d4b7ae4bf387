# SPDX-License-Identifier: Apache-2.0
"""The one exception that a user is meant to read, and the words that its sentences are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right: a recipe key, a file, a folder, a checkpoint, a token.

    The message is one sentence that says what is wrong, where, and what to do. The command line
    prints it without a traceback and exits with ``exit_code``: 2 for a mistake in what was asked,
    1 for a job that failed on the way (a loss that became nan, an upload that broke off).
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        # A name out of a damaged file must not reach the terminal as it is.
        super().__init__("\n".join(map(printable, message.split("\n"))))
        self.exit_code = exit_code


class Diverged(UserError):
    """A run whose loss or gradient is no longer a number, or left all bounds: the outcome of what was asked."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error or value on one line of at most ``limit`` characters, without control bytes."""
    text = " ".join(str(error).split())[:limit]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def nearest(name: object, known: Iterable[object], cutoff: float = 0.6) -> str | None:
    """The known name that ``name`` is most like, or None."""
    return next(iter(difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=cutoff)), None)


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """``; did you mean 'x'?`` for the nearest known name, or an empty string."""
    near = nearest(name, known)
    return f"; did you mean '{near}'?" if near else ""


def printable(text: str) -> str:
    """Text for a terminal: white space as single spaces, and a mark for each character that could control it."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
