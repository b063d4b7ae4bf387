# SPDX-License-Identifier: Apache-2.0
"""The sentences with which a command ends, read from the sources, for the index of recipes/TROUBLESHOOTING.md.

python -m tests.sentences        # writes it between the markers of the page
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "recipes" / "TROUBLESHOOTING.md"
START, END = "<!-- sentences -->", "<!-- /sentences -->"
GAP = "…"  # stands for what differs from case to case
_ROOMS = {
    "training": "Recipes, data and runs",
    "evaluation": "Evaluation",
    "analysis": "Analysis",
    "studies": "Studies",
    "hub": "Conversion, cards, export and push",
}
_OTHERS = "Everywhere"


def sentences() -> dict[str, list[str]]:
    """Title to sorted sentences of every ``UserError`` whose words stand in the sources."""
    found: dict[str, set[str]] = {title: set() for title in (*_ROOMS.values(), _OTHERS)}
    for path in sorted((ROOT / "ibnorm_hf").rglob("*.py")):
        room = path.relative_to(ROOT / "ibnorm_hf").parts[0]
        for sentence in _raised(ast.parse(path.read_text(encoding="utf-8"))):
            found[_ROOMS.get(room, _OTHERS)].add(sentence)
    return {title: sorted(lines, key=lambda line: line.lower().lstrip(f"{GAP} :'")) for title, lines in found.items()}


def _raised(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError" and node.args:
            sentence = " ".join(_text(node.args[0]).split())
            if len(sentence.replace(GAP, "").split()) >= 2:  # else all of it is told by what it wraps
                yield sentence


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) if isinstance(value, ast.Constant) else GAP for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return GAP


def render() -> str:
    """The index in markdown."""
    lines = []
    for title, found in sentences().items():
        if found:
            lines += [f"### {title}", "", *(f"- `{line.replace('`', chr(39))}`" for line in found), ""]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}\n{render()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
