# SPDX-License-Identifier: Apache-2.0
"""The kinds of corpora: every class of this folder's files. A new file here is all that a new kind needs."""

from __future__ import annotations

import inspect
import pkgutil
from functools import cache
from importlib import import_module
from typing import TypeVar

from ...keys.arguments import DataArguments
from .base import Source

T = TypeVar("T")


@cache
def kinds(base: type[T]) -> tuple[type[T], ...]:
    """The concrete public subclasses of ``base`` in this folder, in the order of their files."""
    package = __name__.rpartition(".")[0]
    found = []
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        for cls in vars(import_module(module.name)).values():
            own = inspect.isclass(cls) and issubclass(cls, base) and cls.__module__ == module.name
            if own and not inspect.isabstract(cls) and cls is not base and cls.__name__[0] != "_":
                found.append(cls)
    return tuple(found)


def open_source(data: DataArguments) -> Source:
    """The source that ``corpus`` names: several in a list, `embedded`, an existing path, or a data set on the Hub.

    Raises:
        UserError: it does not exist, or holds nothing that could be read.
    """
    corpus = data.corpus
    kind = next(kind for kind in sorted(kinds(Source), key=lambda kind: kind.order) if kind.claims(corpus))
    return kind.open(data, corpus)
