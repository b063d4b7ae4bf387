# SPDX-License-Identifier: Apache-2.0
"""The one reader of YAML, of files and of values alike: plain values only, bounded in size and depth.

A few lines of aliases can stand for gigabytes, and tags can stand for objects, so neither is known here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, one_line
from .strict_json import read_text

MAX_BYTES = 256 << 10  # parsing that much takes seconds; a recipe has a few hundred
MAX_DEPTH = 32
_MAX_DIGITS = 64
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, tags, dates, and keys written twice, of which YAML would silently keep the last."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark: Any = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            problem = f"it is nested more than {MAX_DEPTH} levels deep"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        if len(node.value) > _MAX_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "a number is too long", node.start_mark)
        kind = node.tag.rpartition(":")[2]
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)

    def refuse_tag(self, node: Any) -> Any:
        raise yaml.constructor.ConstructorError(
            None, None, f"tags ({one_line(node.tag, 60)}) are not supported", node.start_mark
        )


_Loader.yaml_constructors = {
    tag: made for tag, made in yaml.SafeLoader.yaml_constructors.items() if str(tag).rpartition(":")[2] in _TAGS
}
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_constructor(None, _Loader.refuse_tag)  # type: ignore[arg-type]
# A date is a word; so are `<<` and `=`.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] in _TAGS]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def loads(text: str, where: str | Path) -> Any:
    """Parse YAML into None, booleans, numbers, texts, lists and mappings.

    Args:
        text: at most MAX_BYTES characters.
        where: what the text is, for the sentence: a file, or a key.

    Raises:
        UserError: it is no YAML, too large, too deep, or holds an alias, a tag or a key twice.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{where}: not valid YAML: it has more than {MAX_BYTES:,} characters")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain values only
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark and isinstance(where, Path) else str(where)
        problem = one_line(getattr(error, "problem", None) or error)
        raise UserError(f"{place}: not valid YAML: {problem}") from None


def scalar(text: str, where: str = "command line") -> Any:
    """A word as YAML would read it; `1e-5`, a string in YAML 1.1, is a number here, and what is no YAML a text.

    Raises:
        UserError: it is longer than a file may be, or holds what a file may not hold (an alias, a tag).
    """
    if _EXPONENT.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return float(text)
    try:
        return loads(text, where)
    except UserError as error:
        if any(word in str(error) for word in ("supported", "levels", "more than", "twice")):
            raise
        return text


def read_mapping(path: Path) -> dict[str, Any]:
    """A mapping of keys to values from a file.

    Raises:
        UserError: the file is missing, unreadable, no YAML of the kind above, or no mapping.
    """
    content = loads(read_text(path, MAX_BYTES), path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is not what it should be: a mapping of keys to values, one `key: value` a line")
    return content


def dumps(content: Any) -> str:
    """YAML text of plain values, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes a value that stands in two places twice: an alias could not be read again."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
