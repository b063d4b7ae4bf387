# SPDX-License-Identifier: Apache-2.0
"""The modeling files of an export: which they are, and how they differ from the installed ones."""

from __future__ import annotations

import ast
from pathlib import Path

from .. import modeling
from ..common.errors import UserError

MODELING = Path(str(modeling.__file__)).parent


def differences(folder: Path) -> list[str]:
    """How the modeling files in ``folder`` differ from the installed ones, one phrase a file; empty if they compute
    the same. Comments, docstrings and formatting do not count.

    Raises:
        UserError: a modeling file of the export is no Python.
    """
    out = []
    for path in sorted(folder.glob("*.py")):
        installed = MODELING / path.name
        if not installed.is_file():
            out.append(f"{path.name}: not in the installed version")
            continue
        theirs, ours = _definitions(path), _definitions(installed)
        changed = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        if changed:
            out.append(f"{path.name}: {', '.join(changed)}")
    return out


def _definitions(path: Path) -> dict[str, str]:
    """name -> normalized code of each top-level definition; statements without a name stand under ``(top level)``."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} is damaged: it is no Python ({error})") from None
    for node in ast.walk(tree):
        # A docstring changes nothing that is computed.
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body and _is_text(body[0]):
            body[0] = ast.Pass()
    out: dict[str, str] = {}
    for statement in tree.body:
        name = getattr(statement, "name", None) or _assigned(statement) or "(top level)"
        out[name] = out.get(name, "") + ast.dump(statement)
    return out


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _assigned(node: ast.stmt) -> str | None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return targets[0].id if targets and isinstance(targets[0], ast.Name) else None


def require_closed(folder: Path) -> None:
    """Stop an export that could not be loaded where this package is absent.

    transformers finds the files that a model needs by the pattern ``from .name import``, here as when it loads them.

    Raises:
        RuntimeError: a file imports this package by another pattern, or a file that was not exported.
    """
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            if node.level > 1 or not node.module or not (folder / f"{node.module}.py").is_file():
                line = f"from {'.' * node.level}{node.module or ''} import {node.names[0].name}"
                raise RuntimeError(f"the export would not load: '{line}' in {path.name} does not travel with it")
