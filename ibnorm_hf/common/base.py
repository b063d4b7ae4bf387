# SPDX-License-Identifier: Apache-2.0
"""The model that another one was trained from: which it is, and whether it still is what it was.

A base counts by the content of its config and weights, or by its commit on the Hub, and never by its name alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .listing import MANIFEST, require_regular
from .paths import digest, file_sha256
from .run import ADAPTER_CONFIG, adapter_config, is_adapter, model_folder
from .strict_json import read_object

# What a manifest says of a base, beside its name in the recipe.
SHA256, COMMIT = "pretrained_sha256", "pretrained_commit"
FROZEN = "base"  # of an adapter: digest of the weights under it, which is all that earlier versions wrote
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.gguf")


@dataclass(frozen=True)
class Base:
    """A base model: a folder, or ``owner/name`` of the Hub at ``commit`` (None: nobody wrote it down)."""

    place: Path
    commit: str | None

    @property
    def name(self) -> str:
        """How results know it: by its folder, whose content counts, or by name and commit."""
        return f"{self.place}@{self.commit}" if self.commit else str(self.place)


def base_sha256(source: str | Path) -> str | None:
    """Digest of what a local pretrained model computes: the content of its config and weights; None for one of the Hub.

    That one is known by its commit.
    """
    path = Path(source)
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(p for name in _FILES for p in path.glob(name))
    return digest([[file.name, file_sha256(file)] for file in files])


def base_of(adapter: Path) -> Base:
    """The base model that an adapter names: a folder, or ``owner/name`` of the Hub.

    A path that leads nowhere from the current folder is tried from the adapter's own.

    Raises:
        UserError: no base is named, it is gone, it is an adapter itself, or it is no longer the one that the adapter
            was trained on.
    """
    config = adapter_config(adapter)
    name = config.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{adapter / ADAPTER_CONFIG} names no base model (base_model_name_or_path); add it")
    base = next((place for place in (Path(name).expanduser(), adapter / name) if os.path.isdir(place)), None)
    recorded = _recorded(adapter)
    if base is None:
        if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise UserError(
                f"the base model {name} of adapter {adapter} does not exist; put it back, or correct {ADAPTER_CONFIG}"
            )
        return Base(Path(name), recorded.get(COMMIT) or config.get("revision"))
    if not any(base.glob("*.gguf")):
        base = model_folder(base)
    if is_adapter(base):
        itself = "names itself as its base model" if base.resolve() == adapter.resolve() else None
        raise UserError(
            f"adapter {adapter} {itself}; correct {ADAPTER_CONFIG}"
            if itself
            else f"the base model {base} of adapter {adapter} is an adapter itself; export it first"
        )
    _require_same(adapter, base, recorded)
    return Base(base, None)


def require_same_base(model: Path) -> Path:
    """The model, once its base, be it of an adapter or of a whole one, is found to be what it was trained from.

    A whole model whose base is gone has nothing to be compared with, and needs it no more.

    Raises:
        UserError: config or weights of the base have changed since; or as ``base_of`` does.
    """
    if is_adapter(model):
        base_of(model)
        return model
    recorded = _recorded(model)
    recipe = recorded.get("recipe")
    name = recipe.get("pretrained") if isinstance(recipe, dict) else None
    if isinstance(name, str) and Path(name).exists():
        _require_same(model, Path(name), recorded)
    return model


def frozen_sha256(model: Any) -> str:
    """Digest in float32 of the parameters below an adapter, which its checkpoints do not hold; PEFT's are left out."""
    import torch

    checksum = hashlib.sha256()
    for name, p in model.named_parameters():
        if "default" not in name.split("."):  # as PEFT calls an adapter
            checksum.update(name.encode())
            checksum.update(p.detach().float().cpu().contiguous().view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def require_recorded_weights(model: Any, adapter: Path) -> None:
    """Compare the weights under a loaded adapter of an earlier version, whose manifest says nothing of base files.

    Raises:
        UserError: they are not those that it was trained on.
    """
    recorded = _recorded(adapter)
    if SHA256 in recorded or FROZEN not in recorded or frozen_sha256(model) == recorded[FROZEN]:
        return
    name = adapter_config(adapter).get("base_model_name_or_path")
    raise UserError(f"{adapter} was trained from another base: {changed_base(str(name))}")


def base_remark(model: Path) -> str | None:
    """What is to be said where a whole model is used by itself, although its base is another one now."""
    try:
        require_same_base(model)
    except UserError as error:
        return f"{error} to publish the model, which names its base; its own weights are whole"
    return None


def changed_base(source: str | Path) -> str:
    """The one sentence about a base that is another one now."""
    return f"the config or weights of {source} have changed since; bring the old ones back"


def _recorded(model: Path) -> Mapping[str, Any]:
    """The facts in a model's manifest; empty where it has none."""
    path = model / MANIFEST
    return read_object(require_regular(path, model)) if os.path.lexists(path) else {}


def _require_same(model: Path, base: Path, recorded: Mapping[str, Any]) -> None:
    wanted = recorded.get(SHA256)
    if wanted is not None and base_sha256(base) != wanted:
        raise UserError(f"{model} was trained from another base: {changed_base(base)}")
