# SPDX-License-Identifier: Apache-2.0
"""English prose in the docstrings of Python source files. Standard library only.

Also a worker program: ``python docstrings.py < paths > prose`` reads one path a line and answers one
line of JSON, a list of paragraphs, for each. As a program of its own it starts in milliseconds and shares
no threads with a process that has loaded torch.
"""

import ast
import json
import re
import sys
import warnings
from pathlib import Path

VERSION = 1  # raise it when the filter changes
_COMMON_WORDS = "the of and to is in a that for be with as are this it or by if not from on an can which"
_COMMON = frozenset(_COMMON_WORDS.split())
_SENTENCE_END = (".", "!", "?", ".)", '."', ":")


def module_prose(path: str) -> list[str]:
    """Prose paragraphs of the docstrings of one Python source file; [] if it cannot be parsed."""
    try:
        source = Path(path).read_bytes()
    except OSError:
        return []
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    out: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                out += prose_paragraphs(docstring)
    return out


def prose_paragraphs(docstring: str) -> list[str]:
    """Paragraphs that read as English sentences: no doctests, tables, signatures or formulas."""
    found = []
    for block in re.split(r"\n\s*\n", docstring):
        text = " ".join(block.split())
        if ">>>" in text or "::" in text or "```" in text or len(text) < 60 or not text.endswith(_SENTENCE_END):
            continue
        words = text.split()
        plain = sum(w.strip(".,;:()`'\"*").isalpha() for w in words)
        common = sum(w.lower() in _COMMON for w in words)
        if len(words) >= 10 and plain >= 0.75 * len(words) and common >= 0.2 * len(words):
            found.append(text)
    return found


def main() -> None:
    """Answer the paths on stdin."""
    for path in sys.stdin.read().splitlines():
        sys.stdout.write(json.dumps(module_prose(path)) + "\n")


if __name__ == "__main__":
    main()
