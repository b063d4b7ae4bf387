# SPDX-License-Identifier: Apache-2.0
"""Which code makes a run, as a digest: the same wherever the same statements stand, whatever is said about them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..common.paths import digest

_ROOMS = ("modeling", "training")  # whole, since their registries find files by name; the rest by what they import
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def code_sha256(root: Path | None = None) -> str:
    """Digest of the modules that decide what a run computes; comments, docstrings and layout do not count.

    These are all of ``modeling`` and ``training``, and what they import from elsewhere in the package; not the list of
    public names, which imports every room. It is the same under every version of Python.

    Args:
        root: the package's folder; by default this one's.
    """
    root = root or Path(__file__).resolve().parents[1]
    told: dict[str, list[str]] = {}
    waiting = [path for room in _ROOMS for path in (root / room).rglob("*.py")]
    while waiting:
        path = waiting.pop()
        words = told.setdefault(path.relative_to(root).as_posix(), [])
        if not words:
            module = ast.parse(path.read_bytes())
            waiting += _imported(module, path)
            _tell(module, words)
    return digest(told)


def _imported(module: ast.Module, path: Path) -> Iterator[Path]:
    """The files that a module imports by relative imports, those inside functions too."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.level:
            place = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            inside = (place / f"{alias.name}.py" for alias in node.names)
            yield from (found for found in (place.with_suffix(".py"), *inside) if found.is_file())


def _tell(node: Any, words: list[str]) -> None:
    """Add a syntax tree as words, without positions. What is empty is left out, as versions of Python differ in it."""
    if isinstance(node, ast.AST):
        words.append(type(node).__name__)
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        for name, value in ast.iter_fields(node):
            if value is not None and value != []:
                words.append(name)
                _tell(value, words)
        words.append(")")
    elif isinstance(node, list):
        for item in node:
            if not (isinstance(item, ast.Constant) and item.value == ""):  # 3.12 ends some f-strings with one
                _tell(item, words)
        words.append("]")
    else:
        words.append(repr(node))
