# SPDX-License-Identifier: Apache-2.0
"""What never leaves this machine: local paths are cut to what means something elsewhere, secrets stop the upload."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.listing import PICKLES, list_files
from ..common.secrets import hide, holds_secret

# A path of two parts or more that begins where a word does; what follows a host in a URL does not.
_PATH = re.compile(r"""(?<![\w.:/~-])(?:[A-Za-z]:[\\/]|~?/)[^\s"'`,;:=<>|]*[\\/][^\s"'`,;:=<>|]*""")
_TRAINING_STATE = ("optimizer", "scheduler", "rng_state", "random_states", "training_args", "trainer_state")


def scrub(value: Any) -> Any:
    """The value with every local path in its texts cut to the part from ``recipes/`` on, or to its last part, and no
    credentials."""
    if isinstance(value, dict):
        return {key: scrub(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(scrub(item) for item in value)
    return _PATH.sub(_cut, hide(value)) if isinstance(value, str) else value


def _cut(match: re.Match[str]) -> str:
    parts = [part for part in re.split(r"[\\/]", match.group()) if part]
    return "/".join(parts[parts.index("recipes") :]) if "recipes" in parts else parts[-1] if parts else ""


def require_publishable(folder: Path, *, secrets: tuple[str, ...] = (), places: tuple[Path, ...] = ()) -> None:
    """Stop an upload that would carry what must not be published.

    Args:
        folder: everything in it would be uploaded.
        secrets: texts that must be in no file, besides whatever looks like a credential.
        places: local folders whose paths must be in no text file.

    Raises:
        UserError: naming the file, and never the secret.
    """
    paths = [str(p).encode() for p in places if len(p.parts) > 2]
    for name in list_files(folder):
        path = folder / name
        if name.endswith(PICKLES) or path.name.startswith(_TRAINING_STATE):
            raise UserError(f"{name} is not published: pickles and training state stay here")
        if name.endswith((".safetensors", ".png")):
            continue
        content = path.read_bytes()
        if holds_secret(content.decode("utf-8", "replace"), secrets):
            raise UserError(f"{name} is not published: it holds an access token; remove it, and revoke that token")
        # A vocabulary may well hold such a word; it names no place.
        if path.name != "tokenizer.json" and any(place in content for place in paths):
            raise UserError(f"{name} is not published: it holds the path of a local folder; remove it")
