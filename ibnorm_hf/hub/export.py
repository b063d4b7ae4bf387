# SPDX-License-Identifier: Apache-2.0
"""A run or model becomes a folder that loads anywhere: with this package, or without it by its own code."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging

from .. import __version__, registration
from ..common.base import base_of, require_same_base
from ..common.errors import UserError, one_line
from ..common.listing import CHECKSUMS, list_files, problems, read_listing, write_listing
from ..common.run import CARD, EVAL_RESULTS, LOSS_CURVE, is_adapter, model_folder, require_safetensors, verify_model
from ..modeling.compression import get_compression, list_compressions
from .adapter import merge
from .code import differences, require_closed
from .licence import copy_files, terms_of
from .probe import probe, require_same_function
from .processing import copy_processing, has_tokenizer


def export(source: str | Path, target: str | Path, *, max_shard_size: str | int = "5GB") -> Path:
    """Write an export: safetensors, config with auto_map, modeling files, tokenizer, card, licence, checksums.

    Args:
        source: a run folder, or a model folder; an export is one. A PEFT adapter is merged into its base model.
        target: a folder that does not exist yet, or is empty. It appears whole or not at all.
        max_shard_size: weights are split into files of at most this size, e.g. ``"5GB"``.

    Raises:
        UserError: the source is unfinished, damaged, a pickle, or cannot be loaded; or the target is taken.
    """
    model, target = model_folder(source), Path(target)
    require_safetensors(model)
    verify_model(model)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; choose a new folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as aside:
            staging = Path(aside) / "export"
            staging.mkdir()
            write_export(model, staging, max_shard_size=max_shard_size)
            if target.exists():
                target.rmdir()
            os.replace(staging, target)
    except OSError as error:
        raise UserError(f"export to {target} failed: {error.strerror or error}", exit_code=1) from None
    return target


def write_export(model: Path, target: Path, *, max_shard_size: str | int) -> None:
    """Fill an empty folder from a model folder, and list its files in ``checksums.json`` last."""
    require_same_base(model)
    base = base_of(model) if is_adapter(model) else None
    parts = [model] if base is None else [model, base.place]  # what an adapter lacks is its base's
    if base is not None and base.place.is_dir():
        require_safetensors(base.place)
        verify_model(base.place)
    # An adapter was trained on its base in float32: rounding the base again would export another model.
    if base is None:
        loaded = _load(model)
        wanted = probe(loaded)
    else:
        loaded, wanted = merge(_load(base.place, torch.float32, base.commit), model)
    _set_remote_code(loaded)
    loaded.save_pretrained(target, max_shard_size=max_shard_size)
    if getattr(loaded.config, "auto_map", None):
        custom_object_save(loaded, target)
    copy_processing(next(filter(has_tokenizer, parts), model), target, loaded.config)
    require_closed(target)
    for name in (CARD, LOSS_CURVE):
        if (model / name).is_file() and base is None:  # PEFT's card tells how to load an adapter
            shutil.copyfile(model / name, target / name)
    if (model / EVAL_RESULTS).is_dir():
        shutil.copytree(model / EVAL_RESULTS, target / EVAL_RESULTS)
    copy_files(terms_of(model), target)
    require_same_function(loaded, wanted, target)
    write_listing(target, CHECKSUMS, {"made_with": _versions()})


def verify(folder: str | Path) -> list[str]:
    """Check every file of an export, and say how its code differs from this version's.

    Returns:
        Lines to print: the file count, then how the export differs, if it does.

    Raises:
        UserError: with exit code 1, naming every file that is missing, damaged, foreign or a pickle.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that `ibnorm-hf export` wrote")
    if not (folder / CHECKSUMS).is_file():
        require_safetensors(folder)
        raise UserError(f"{folder} has no {CHECKSUMS}, so it cannot be verified; export it again")
    found = list(problems(folder, CHECKSUMS))
    if found:
        raise UserError(f"{folder} is damaged: {'; '.join(found)}", exit_code=1)
    count = len(list_files(folder)) - 1
    return [f"{count} files match {CHECKSUMS}", *age(folder)]


def age(folder: Path) -> list[str]:
    """Lines about an export whose modeling code is not this version's; empty where nothing differs.

    With this package imported, its own classes load the export, so a difference here is a difference in what the
    model computes with and without the package.
    """
    if not (folder / CHECKSUMS).is_file():
        return []
    version = made_with(folder).get("ibnorm_hf", "an unknown version")
    changed = differences(folder)
    if not changed:
        return []
    return [
        f"exported by ibnorm_hf {version}, this is {__version__}; definitions that differ:",
        *(f"  {line}" for line in changed),
        "  trust_remote_code=True without ibnorm_hf runs the exported code, with ibnorm_hf the installed code",
    ]


def made_with(folder: Path) -> dict[str, Any]:
    """The versions that wrote an export; empty where it does not say."""
    versions = read_listing(folder / CHECKSUMS)[0].get("made_with")
    return versions if isinstance(versions, dict) else {}


def _load(folder: Path, dtype: torch.dtype | str = "auto", commit: str | None = None) -> PreTrainedModel:
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a file, a bar is a page of lines
    try:
        at = {"revision": commit} if commit else {}
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **at)
        cls = _model_class(config, folder)
        model, info = cls.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **at)
    except UserError:
        raise
    except Exception as error:
        # transformers raises whatever its parts raise; for the user it is one thing: these files do not load.
        raise UserError(f"{folder} cannot be loaded: {one_line(error)}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise UserError(f"{folder}: weights and config.json disagree ({kind.replace('_', ' ')}: {min(info[kind])})")
    return model


def _model_class(config: PreTrainedConfig, folder: Path) -> Any:
    name = str((config.architectures or ["none"])[0])
    classes = {cls.__name__: cls for cls in registration._MODELS.get(type(config), {}).values()}
    cls = classes.get(name) or getattr(transformers, name, None)
    if cls is None:
        raise UserError(f"{folder / 'config.json'}: architecture '{name}' is neither ours nor of transformers")
    return cls


def _set_remote_code(model: PreTrainedModel) -> None:
    """Name the code of every head in the config, so that one export serves AutoModel and fine-tuning too.

    A vanilla model needs no code and gets none.
    """
    config: Any = model.config
    config.auto_map = None
    heads = registration._MODELS.get(type(config))
    if heads is None:
        del config.auto_map
        return
    own = get_compression(config.norm_type).g.__module__ if config.norm_type in list_compressions() else __package__
    if own.partition(".")[0] != __package__.partition(".")[0]:
        raise UserError(
            f"norm_type '{config.norm_type}' is registered by {own}, whose code an export cannot carry: "
            "add it to compression.py instead"
        )
    config.auto_map = {"AutoConfig": _reference(type(config))}
    config.auto_map.update({auto.__name__: _reference(cls) for auto, cls in heads.items()})
    config.ibnorm_version = __version__


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("ibnorm_hf", "transformers", "torch", "safetensors")}
