# SPDX-License-Identifier: Apache-2.0
"""The sub-commands `recipes` and `keys`: what a user can start from, and what can be said."""

from __future__ import annotations

import argparse


def add_recipe_jobs(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both."""
    text = "list the recipes, studies and accelerate files that come with the package, or copy one to change it"
    parser = jobs.add_parser("recipes", help=text, description=text, allow_abbrev=False)
    parser.set_defaults(job=list_recipes)
    copying = parser.add_subparsers(metavar="copy").add_parser("copy", help="copy one", allow_abbrev=False)
    copying.add_argument("name", metavar="NAME", nargs="?", help="as `ibnorm-hf recipes` lists it, e.g. llama/tiny")
    copying.add_argument("target", metavar="PLACE", nargs="?", help="file or folder; default: the current folder")
    copying.set_defaults(job=copy_recipe)
    keys = jobs.add_parser("keys", help="list the keys of a recipe: type, default, bound or free, meaning")
    keys.add_argument("word", nargs="?", metavar="WORD", help="only keys whose name or meaning holds this word")
    keys.set_defaults(job=list_keys)


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
