# SPDX-License-Identifier: Apache-2.0
"""The private part of datasets that image runs rely on."""

from __future__ import annotations

from typing import Any

from .private import missing

SEEN = "4.0 to 5.2"


def fingerprint_of(rows: Any) -> str:
    """What ``datasets`` itself knows a data set by. Raises UserError where it no longer says it."""
    found = getattr(rows, "_fingerprint", None)
    if not isinstance(found, str):
        raise missing("datasets", [f"{type(rows).__module__}:{type(rows).__name__}._fingerprint"], SEEN)
    return found
