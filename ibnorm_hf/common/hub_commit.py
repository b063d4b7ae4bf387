# SPDX-License-Identifier: Apache-2.0
"""A data set on the Hub counts by its commit: new content under an old name is another data set."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from .errors import UserError
from .online import hub_or_cache
from .paths import cache_root, digest, write_json

_COMMIT = re.compile(r"[0-9a-f]{40}")


def require_commit(rows: Any, name: str, commit: str | None) -> None:
    """Refuse a data set that the cache gave at another commit, as it does where there is no network.

    Args:
        rows: a map-style data set as ``datasets`` loaded it.
        commit: the one that was asked for.
    """
    there = {Path(file["filename"]).parent.name for file in rows.cache_files}
    other = sorted(found for found in there if _COMMIT.fullmatch(found) and found != commit)
    if commit is not None and other:
        raise UserError(
            f"data set {name} is wanted at commit {commit}, and without a network only {other[0]} is here; connect "
            "once, or name that commit as its revision"
        )


@cache
def resolve_commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set stands for now; offline the one last seen, None if there is none."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    record = cache_root() / "hub" / f"{digest([name, revision])[:24]}.json"
    try:
        with hub_or_cache():
            commit = HfApi().dataset_info(name, revision=revision, timeout=10).sha
    except Exception:  # offline, no network, no such name: opening it says which
        try:
            return str(json.loads(record.read_text(encoding="utf-8"))["commit"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    if commit:
        write_json(record, {"name": name, "revision": revision, "commit": commit})
    return commit
