# SPDX-License-Identifier: Apache-2.0
"""Under which licence a model goes on: that of the weights it was made from, or the one that its owner names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import strict_json, strict_yaml
from ..common.errors import UserError, one_line
from ..common.listing import require_regular
from ..common.run import CARD, Run, adapter_config, is_adapter, is_model, is_run, model_folder

CONVERSION = "conversion.json"
_FILES = re.compile(r"(licen[sc]es?|notice|copying|use_policy)([ ._-].*)?", re.IGNORECASE)
_KEYS = ("license", "license_name", "license_link")
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Terms:
    """What is known about the licence of a model.

    Args:
        base: the name of the model that it was made from; None for one that was trained from scratch.
        base_model: ``base`` where that is a name on the Hub, or what the base's own card says.
        metadata: ``license``, ``license_name``, ``license_link`` of a card; empty where none is known.
        files: licences and notices that travel with the weights.
    """

    base: str | None = None
    base_model: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def line(self) -> str:
        """For whoever publishes: what is claimed, or that nothing is."""
        if self.metadata:
            whose = f" of {self.base}" if self.base else ""
            return f"licence{whose}: {self.metadata.get('license_name') or self.metadata['license']}"
        if self.base:
            return f"licence: that of {self.base}, which does not say it here; look it up before you publish"
        return "licence: none is claimed; name one with --license, or the recipe's key license"


def terms_of(source: str | Path, named: str | None = None) -> Terms:
    """The terms of a run or model folder.

    Licence files beside the weights, and beside the weights that they were made from, travel; so does what the cards
    there say. ``named``, or the recipe's ``license``, counts only where no base says otherwise.

    Raises:
        UserError: a name that is no licence's identifier, or a file that cannot be read.
    """
    folder = Path(source)
    recipe: Mapping[str, Any] = Run(folder).config if is_run(folder) else {}
    if not recipe and is_run(folder.resolve().parent) and folder.resolve().name == "model":
        recipe = Run(folder.resolve().parent).config
    model = model_folder(folder)
    base = _base(model, recipe)
    named = named or recipe.get("license")
    if named is not None and not _ID.fullmatch(str(named)):
        raise UserError(
            f"license {one_line(named, 60)} is no identifier of the Hub; give one such as apache-2.0 or other"
        )
    local = _local(base, model)
    # The card of a run is ours, and made of these very terms; that of a model folder came with it.
    places = [*([] if recipe else [model]), *([local] if local else [])]
    said: dict[str, Any] = next(filter(None, (_front_matter(place / CARD) for place in places)), {})
    metadata = {key: str(said[key]) for key in _KEYS if said.get(key)}
    if not metadata and named:
        metadata = {"license": str(named)}
    name = base if base is None or (_HUB_NAME.fullmatch(base) and local is None) else Path(base).name
    of_card = said.get("base_model")
    hub = (
        name if name and local is None and _HUB_NAME.fullmatch(name) else of_card if isinstance(of_card, str) else None
    )
    return Terms(name, hub, metadata, tuple(_files([model, *([local] if local else [])])))


def _base(model: Path, recipe: Mapping[str, Any]) -> str | None:
    if is_adapter(model):
        return adapter_config(model).get("base_model_name_or_path")
    if (model / CONVERSION).is_file():
        source = strict_json.read_object(require_regular(model / CONVERSION, model)).get("source")
        return source if isinstance(source, str) else None
    base = recipe.get("pretrained")
    return base if isinstance(base, str) else None


def _local(base: str | None, model: Path) -> Path | None:
    """The folder of the base's model, where it is one of this machine."""
    for place in (Path(base), model / base) if base else ():
        if os.path.isdir(place) and (is_run(place) or is_model(place)) and place.resolve() != model.resolve():
            return model_folder(place)
    return None


def _front_matter(card: Path) -> dict[str, Any]:
    """The metadata of a card; empty where there is none that can be read."""
    if not card.is_file() or card.is_symlink():
        return {}
    parts = re.split(r"^---[ \t]*$", strict_json.read_text(card), maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip("\ufeff \n"):
        return {}
    content = strict_yaml.loads(parts[1], card)
    return content if isinstance(content, dict) else {}


def _files(folders: Iterable[Path]) -> Iterable[Path]:
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if _FILES.fullmatch(path.name) and (path.is_file() or path.is_symlink()):
                yield require_regular(path, folder)


def copy_files(terms: Terms, target: Path) -> None:
    """Copy licences and notices; of two with one name and other words, the second is the base's and says so."""
    for path in terms.files:
        content = path.read_bytes()
        place = target / path.name
        if place.exists() and place.read_bytes() != content:
            place = target / f"{path.stem}_BASE{path.suffix}"
        place.write_bytes(content)
