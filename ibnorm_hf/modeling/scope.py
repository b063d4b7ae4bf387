# SPDX-License-Identifier: Apache-2.0
"""Which norms of a model are meant: those of some sites (``norm_scope``), without those that are named."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .compression import canonical_name, unknown_name
from .recognize import iter_norms
from .sites import site_in
from .wrappers import unwrapped

_KIND = {"final": "final", "pre-attention": "attention", "pre-mlp": "mlp"}
SCOPES = ("all", *_KIND)


def check_scope(norm_scope: str | Sequence[str]) -> str | list[str]:
    """The canonical words of a scope: ``all``, or one or several of ``final``, ``pre-attention`` and ``pre-mlp``.

    Raises:
        ValueError: an unknown word, ``all`` beside others, or no word.
    """
    words = [norm_scope] if isinstance(norm_scope, str) else list(norm_scope)
    names = list(dict.fromkeys(canonical_name(word) for word in words))
    for word, name in zip(words, map(canonical_name, words), strict=True):
        if name not in SCOPES:
            raise unknown_name("norm_scope", word, SCOPES)
    if not names or ("all" in names and len(names) > 1):
        raise ValueError(f"norm_scope is 'all', or one or several of {', '.join(_KIND)}; got {list(words)}.")
    return names[0] if len(names) == 1 else names


def chosen_norms(
    model: nn.Module, norm_scope: str | Sequence[str] = "all", exclude: Sequence[str] = ()
) -> list[tuple[str, list[nn.Module]]]:
    """``iter_norms`` of the sites in scope, without those whose path, or its last parts, matches a name to exclude.

    Args:
        model: any module; a site's kind is known by the names of its path (see ``site_of``).
        norm_scope: see ``check_scope``.
        exclude: names or patterns with ``*`` and ``?``, such as ``q_norm``, ``*_norm``, ``layers.0.*``.

    Raises:
        ValueError: an unknown scope, or a name to exclude that matches no norm of the model.
    """
    scope = check_scope(norm_scope)
    kinds = None if scope == "all" else {_KIND[word] for word in ([scope] if isinstance(scope, str) else scope)}
    norms = list(iter_norms(model))
    prefix = str(getattr(unwrapped(model), "base_model_prefix", ""))
    for name in exclude:
        if not any(is_named(path, name, prefix) for path, _ in norms):
            raise _nothing_to_exclude(model, name, [path for path, _ in norms])
    return [
        (path, modules)
        for path, modules in norms
        if not any(is_named(path, name, prefix) for name in exclude)
        and (kinds is None or site_in(model, path).kind in kinds)
    ]


def is_named(path: str, name: str, prefix: str = "") -> bool:
    """Whether a name or pattern means this path: all of it, its last parts, or all of it in a model with a head."""
    inside = not prefix or path.startswith(f"{prefix}.")
    paths = (path,) if inside else (path, f"{prefix}.{path}")
    return any(fnmatchcase(p, name) or fnmatchcase(p, f"*.{name}") for p in paths)


def _nothing_to_exclude(model: Any, name: str, paths: list[str]) -> ValueError:
    last = sorted({path.rpartition(".")[2] for path in paths})
    near = difflib.get_close_matches(name, [*last, *paths], n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"its norms are called {', '.join(last)}."
    return ValueError(f"exclude names '{name}', but {type(model).__name__} has no such norm; {hint}")
