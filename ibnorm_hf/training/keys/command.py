# SPDX-License-Identifier: Apache-2.0
"""The sub-commands `recipes` and `keys`: what a user can start from, and what can be said."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_recipe_jobs(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both."""
    text = "list the recipes, studies and accelerate files that come with the package, or copy one to change it"
    parser = jobs.add_parser("recipes", help=text, description=text, allow_abbrev=False)
    parser.set_defaults(job=list_recipes)
    copying = parser.add_subparsers(metavar="copy").add_parser("copy", help="copy one", allow_abbrev=False)
    name: Any = copying.add_argument(
        "name", metavar="NAME", nargs="?", help="as `ibnorm-hf recipes` lists it, e.g. llama/tiny"
    )
    name.completer = complete_name
    copying.add_argument("target", metavar="PLACE", nargs="?", help="file or folder; default: the current folder")
    copying.set_defaults(job=copy_recipe)
    keys = jobs.add_parser("keys", help="list the keys of a recipe: type, default, bound or free, meaning")
    keys.add_argument("word", nargs="?", metavar="WORD", help="only keys whose name or meaning holds this word")
    keys.set_defaults(job=list_keys)


def completed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser; where a shell only asks what could come next, it is answered and this never returns."""
    if "_ARGCOMPLETE" in os.environ:
        from argcomplete import autocomplete

        autocomplete(parser)
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe of a job."""
    recipe: Any = parser.add_argument(
        "recipe", help="YAML file, or the name of one that `ibnorm-hf recipes` lists: llama/tiny"
    )
    recipe.completer = complete_recipe


def complete_recipe(prefix: str, **context: Any) -> list[str]:
    """What a shell proposes for a recipe: names of the package, and YAML files."""
    from .files import shipped

    names = [name for name in shipped() if not name.startswith(("accelerate/", "base/"))]
    files = [str(path) for path in Path().glob(f"{prefix}*") if path.is_dir() or path.suffix == ".yaml"]
    return [word for word in [*names, *files] if word.startswith(prefix)]


def complete_name(prefix: str, **context: Any) -> list[str]:
    """What a shell proposes for `recipes copy`."""
    from .files import shipped

    return [name for name in shipped() if name.startswith(prefix)]


def list_recipes(arguments: argparse.Namespace) -> int:
    """Print what comes with the package."""
    from .files import list_lines

    print("\n".join(list_lines()))
    return 0


def copy_recipe(arguments: argparse.Namespace) -> int:
    """Copy a file that comes with the package."""
    from ...common.errors import UserError
    from .files import copy_recipe as copy

    if arguments.name is None:
        raise UserError(
            "recipes copy needs a name: ibnorm-hf recipes copy NAME [PLACE]; `ibnorm-hf recipes` lists them"
        )
    print(copy(arguments.name, arguments.target))
    return 0


def list_keys(arguments: argparse.Namespace) -> int:
    """Print what a recipe may say."""
    from .describe import key_lines

    print("\n".join(key_lines(arguments.word)))
    return 0
