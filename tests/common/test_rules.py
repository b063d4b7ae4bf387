# SPDX-License-Identifier: Apache-2.0
"""Rules that the whole package keeps, read from its source."""

import ast
from pathlib import Path

import pytest

import ibnorm_hf

ROOT = Path(ibnorm_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def test_nothing_is_loaded_with_its_own_code():
    """transformers would ask on stdin, and "y" would run the checkpoint's Python."""
    found = 0
    for path in FILES:
        for call, name in calls(path):
            if not name.endswith(".from_pretrained") or name.startswith(("Peft", "super()")):
                continue
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            registered = name == "cls.from_pretrained" and path.name == "export.py"  # a class of ours or transformers'
            value = given.get("trust_remote_code")
            assert registered or (isinstance(value, ast.Constant) and value.value is False), f"{path}:{call.lineno}"
            found += 1
    assert found >= 6


@pytest.mark.parametrize(
    "call, place",
    [
        ("yaml.load", "common/strict_yaml.py"),
        ("yaml.safe_load", ""),
        ("yaml.safe_dump", ""),
        ("difflib.get_close_matches", "common/errors.py"),
    ],
)
def test_there_is_one_of_each(call, place):
    """``modeling`` stands alone: its files travel beside the weights."""
    files = {path.relative_to(ROOT).as_posix() for path in FILES for _, name in calls(path) if name == call}
    assert {name for name in files if not name.startswith("modeling/")} == ({place} if place else set())
