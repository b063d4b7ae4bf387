# SPDX-License-Identifier: Apache-2.0
"""The file of a recipe: where it is, those that come with the package, and what a recipe takes from its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...common import strict_json, strict_yaml
from ...common.errors import UserError, did_you_mean, nearest

EXTENDS = "extends"
_DEEPEST = 8


def shipped_root() -> Path:
    """The folder of the recipes that come with the package: in it where a wheel was installed, beside it in a clone."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Every recipe, study and configuration of accelerate that comes with the package: `llama/tiny` and its file."""
    root = shipped_root()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("*/*.yaml"))}


def locate(name: str | Path) -> Path:
    """The file of a recipe: the path of one, or the name of one that comes with the package.

    ``recipes/llama/tiny.yaml``, ``llama/tiny.yaml`` and ``llama/tiny`` all name the same; a file of that path is first.
    The path comes back as it was given where there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    short = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    return shipped().get(short, path)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a recipe file, alone, into a flat mapping (``model`` stays nested).

    Raises:
        UserError: the file is absent, not UTF-8, not YAML, or not a mapping.
    """
    path = Path(path)
    if not path.exists():
        near = nearest(path, [*Path("recipes").rglob("*.yaml"), *shipped()])
        raise UserError(f"recipe file {path} does not exist{f'; did you mean {near}?' if near else ''}")
    content = strict_yaml.loads(strict_json.read_text(path, strict_yaml.MAX_BYTES), path)
    if content is None:
        content = {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, one `key: value` a line")
    return content


def read_recipe(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe with what it ``extends``, and for each key the file in which it stands.

    A key replaces that of the base; in ``model`` each size does. A base is named by its path, from the recipe's folder,
    or by its name where it comes with the package, and may have a base itself.

    Raises:
        UserError: as ``read_yaml``; or a base is missing, no text, its own base, or too deep.
    """
    chain: list[tuple[Path, dict[str, Any]]] = []
    path = Path(path)
    while True:
        content = read_yaml(path)
        if any(path.resolve() == other.resolve() for other, _ in chain):
            raise UserError(f"{chain[-1][0]}: key {EXTENDS} leads in a circle, back to {path}")
        chain.append((path, content))
        if EXTENDS not in content:
            break
        if len(chain) > _DEEPEST:
            raise UserError(f"{chain[0][0]}: key {EXTENDS} goes over more than {_DEEPEST} files; write some into one")
        path = _base(path, content.pop(EXTENDS))
    merged: dict[str, Any] = {}
    places: dict[str, str] = {}
    for path, content in reversed(chain):
        for key, value in content.items():
            both = key == "model" and isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **value} if both else value
            places[key] = str(path)
    return merged, places


def find_base(folder: Path, name: str) -> Path | None:
    """The recipe that a file in ``folder`` names: one beside it, or one of the package, so that a copy finds it too."""
    beside = folder / name
    return beside if beside.is_file() else shipped().get(name.removeprefix("../").removesuffix(".yaml"))


def _base(recipe: Path, name: Any) -> Path:
    if not isinstance(name, str) or not name:
        raise UserError(f"{recipe}: key {EXTENDS} names one other recipe, a path or a name such as llama/tiny")
    found = find_base(recipe.parent, name)
    if found is None:
        raise UserError(f"{recipe}: key {EXTENDS} names {name}, which is not there{did_you_mean(name, shipped())}")
    return found


def list_lines() -> list[str]:
    """One line a file that comes with the package: its name, and the first sentence of its header."""
    names = shipped()
    width = max(map(len, names), default=0)
    lines = []
    for name, path in names.items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        lines.append(f"{name:{width}}  {first.lstrip('# ')}")
    return lines


def copy_recipe(name: str, target: str | Path | None = None) -> Path:
    """Copy a file that comes with the package, to change it: into the current folder, or to ``target``.

    Raises:
        UserError: there is no such name, or something is in the place already.
    """
    source = shipped().get(Path(name).as_posix().removeprefix("recipes/").removesuffix(".yaml"))
    if source is None:
        raise UserError(f"no recipe is called {name}{did_you_mean(name, shipped())}; see `ibnorm-hf recipes`")
    place = Path(target) if target is not None else Path(source.name)
    if place.is_dir():
        place = place / source.name
    if place.exists() or place.is_symlink():
        raise UserError(f"{place} exists already and is kept; give another name: ibnorm-hf recipes copy {name} FILE")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
    except OSError as error:
        raise UserError(f"{place}: cannot write here ({error.strerror}); name another place") from error
    return place
