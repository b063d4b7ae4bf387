# SPDX-License-Identifier: Apache-2.0
"""The house: who imports whom, read from the source, imports inside functions counted."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "ibnorm_hf"
LAUNCHED = ROOT.parent / "recipes"
# What each room may import beside itself and the two modules at the top that know how to load models.
MAY = {
    "common": set(),
    "modeling": set(),
    "training": {"common", "modeling"},
    "evaluation": {"common", "modeling"},
    "analysis": {"common", "modeling"},
    "hub": {"common", "modeling"},
    "studies": {"common", "modeling", "training"},
}
TOP = {"registration": {"modeling"}, "pretrained": {"common", "modeling", "registration"}}
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
ONE_THING = {
    # Function of more lines -> why it is one thing. None is at present.
}


@cache
def files():
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def launched():
    """What users launch, beside the package."""
    return {path.relative_to(LAUNCHED.parent).as_posix(): path for path in sorted(LAUNCHED.rglob("*.py"))}


def imports(name, path):
    """Names below ibnorm_hf of the files that a file imports, type-checking imports left out."""
    package = name.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else None
            words = (node.module or "").split(".") if node.module else []
            if base is None:
                if words[:1] != ["ibnorm_hf"]:
                    continue
                base, words = [], words[1:]
            target = ".".join([*base, *words])
            found |= {
                candidate
                for alias in node.names
                for candidate in (f"{target}.{alias.name}".strip("."), target)
                if candidate in files()
            }
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("ibnorm_hf.") for a in node.names} & set(files())
    return found - {name}


def graph():
    return {name: imports(name, path) for name, path in files().items()}


def test_no_circle_not_even_inside_functions():
    left = graph()
    while ready := [name for name, needs in left.items() if not needs & set(left)]:
        for name in ready:
            del left[name]
    assert not left, f"circles among {sorted(left)}"


def test_rooms_import_downwards_only():
    wrong = []
    for name, needs in graph().items():
        room = name.split(".")[0]
        for need in needs:
            other = need.split(".")[0]
            if other == room or room in ("cli", "__init__"):
                continue
            allowed = (
                TOP[room] if room in TOP else MAY[room] | (set(TOP) if room not in ("common", "modeling") else set())
            )
            if other not in allowed:
                wrong.append(f"{name} imports {need}")
    assert not wrong, wrong


def test_every_room_is_known():
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(MAY)


def test_no_file_is_over_long():
    lengths = {name: len(path.read_text().splitlines()) for name, path in {**files(), **launched()}.items()}
    assert not (long := {name: count for name, count in lengths.items() if count > MOST_LINES}), long


def functions():
    """(name of file and function, lines, those of its docstring too) of every function."""
    for name, path in {**files(), **launched()}.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{name}.{node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_over_long():
    lengths = dict(functions())
    long = {name for name, count in lengths.items() if count > MOST_LINES_OF_A_FUNCTION}
    assert long == set(ONE_THING), {name: lengths.get(name) for name in long ^ set(ONE_THING)}
    assert len(lengths) > 500  # it saw them
