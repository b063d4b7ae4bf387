# SPDX-License-Identifier: Apache-2.0
"""Private parts of libraries: each stands in one file a library, with the versions it was seen in.

They are looked for when a job that needs them starts: one that was renamed ends it with a sentence, and never leads to
a run that quietly does something else.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import metadata

from .errors import UserError


@dataclass(frozen=True)
class Parts:
    """What is used of a library beyond its documentation.

    Args:
        library: its name on the package index.
        seen: the versions in which every part was seen.
        names: ``package.module:Owner.part``.
    """

    library: str
    seen: str
    names: tuple[str, ...]

    def require(self) -> None:
        """Raise UserError if one of them is gone, or has another name."""
        gone = [name for name in self.names if not _is_there(name)]
        if gone:
            raise missing(self.library, gone, self.seen)


def missing(library: str, gone: list[str], seen: str) -> UserError:
    """The sentence about parts that are gone."""
    names = ", ".join(name.replace(":", ".") for name in gone)
    return UserError(
        f"the installed {library} {metadata.version(library)} has no {names}, which this version of ibnorm_hf relies "
        f"on; install {library} {seen}"
    )


def _is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
