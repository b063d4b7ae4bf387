# SPDX-License-Identifier: Apache-2.0
"""Read a recipe: YAML file + command line -> checked dataclasses, and back. Every mistake is one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from ... import FAMILIES
from ...common.errors import UserError
from .arguments import ModelArguments, RunArguments
from .checks import check_start, check_values
from .corpora import beside
from .files import locate
from .launch import check_launch, take_environment
from .reading import Asked, known_keys, read
from .table import IDENTITY_VERSION, VERSION_KEY, is_bound, looks_at_validation

# Keys of a single start, or which follow from others: not written down.
_NOT_KEPT = ("dry_run", "force", "resume", "gradient_accumulation_steps")
# Free keys whose value is the machine's where nobody gave one: it is chosen anew elsewhere.
_OF_THE_MACHINE = ("use_cpu", "dataloader_pin_memory", "disable_tqdm", "processes")


@dataclass
class Recipe:
    """A checked recipe. ``sizes`` is the ``model:`` mapping, ``name`` the recipe's short name.

    ``given`` are the keys that somebody wrote, ``repo_id`` is where the finished run is published, by
    ``push_to_hub: true`` and ``hub_model_id``.
    """

    name: str
    model: ModelArguments
    sizes: dict[str, Any]
    data: Any
    run: RunArguments
    given: frozenset[str]
    repo_id: str | None = None


def load_recipe(path: str | Path, arguments: list[str] | None = None) -> Recipe:
    """Read and check a recipe and the command-line keys that override it.

    Args:
        path: a file, or the name of a recipe that comes with the package, e.g. ``llama/tiny``.
        arguments: the words of the command line after it, e.g. ``["--seed", "1"]``.

    A recipe that says ``images`` trains a classifier: its data keys are those of ``ImageArguments``.

    Raises:
        UserError: on any unknown, misspelt, refused or mistyped key, naming where it stands.
    """
    path = locate(path)
    asked = read(path, list(arguments or []))
    take_environment(asked)
    _look_beside(asked)
    values = dict(asked.values)
    if not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        # Said for the user, or TrainingArguments would refuse bf16 on a machine that can do it.
        values.setdefault("use_cpu", True)
    if values.get("report_to", 0) is None:
        values["report_to"] = "none"
    model, data, run = _build(values, asked)
    repo_id = _repository(run, asked)
    check_start(model, data, repo_id, asked)
    check_values(data, run, asked)
    check_launch(run, str(path))
    _validate_before(model, data, run, asked)
    recipe = Recipe(_name(path), model, asked.sizes, data, run, frozenset(asked.where), repo_id)
    if "output_dir" not in asked.where or run.output_dir is None:
        run.output_dir = f"runs/{_run_name(recipe, asked)}"
    return recipe


# Keys that may name a local path, and the words of them that do not.
_PATHS = {
    "corpus": ("embedded",),
    "validation_corpus": ("embedded",),
    "chat_template": ("chatml",),
    "images": ("digits",),
    "tokenizer": ("train",),
    "pretrained": (),
}


def _look_beside(asked: Asked) -> None:
    """Take a relative path of a recipe file from where that lies; from the current folder if nothing is there."""
    for key, words in _PATHS.items():
        value, file = asked.values.get(key), Path(asked.where.get(key, ""))  # of the recipe or of its base
        if not isinstance(value, (str, list)) or value in words or not file.is_file():
            continue
        found = file.parent / str(value)
        model = key in ("tokenizer", "pretrained") and os.path.isdir(found)
        # A folder of recipes may bear the name of a model of the Hub.
        if model and not any(found.glob("*.json")) and not any(found.glob("*.gguf")):
            continue
        asked.values[key] = beside(value, file.parent, words)


def _validate_before(model: ModelArguments, data: Any, run: RunArguments, asked: Asked) -> None:
    """What pretrained weights are worth before the first step is the number that a fine-tune is held against."""
    decides = bound("eval_on_start", type(data), _looks(run))
    validates = str(_plain(run.eval_strategy)) != "no"
    if model.pretrained is not None and "eval_on_start" not in asked.where and validates and not decides:
        run.eval_on_start = True


def _build(values: dict[str, Any], asked: Asked) -> tuple[ModelArguments, Any, RunArguments]:
    parser = HfArgumentParser((ModelArguments, asked.data, RunArguments))  # type: ignore[arg-type]
    try:
        model, data, run = parser.parse_dict(values)
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, ImportError, OSError) as error:
        message = " ".join(str(error).split())
        culprit = _culprit(message, asked)
        hint = "" if not culprit or culprit in message else f"key {culprit}: "
        raise UserError(f"{asked.place(culprit)}: {hint}{message}") from None
    return model, data, run


def _culprit(message: str, asked: Asked) -> str:
    """The key that an error of TrainingArguments is about: named in it, or else quoted by its value."""
    mentioned = [key for key in asked.values if re.search(rf"\b{key}\b", message)]
    quoted = [key for key, value in asked.values.items() if len(str(value)) > 2 and str(value) in message]
    return (mentioned or quoted or [""])[0]


def _name(path: Path) -> str:
    """`recipes/llama/tiny.yaml` -> `llama-tiny`; a file in the current folder keeps its own name."""
    parent = path.resolve().parent.name
    return f"{parent}-{path.stem}" if parent in (*FAMILIES, "finetune") else path.stem


def _run_name(recipe: Recipe, asked: Asked) -> str:
    """Recipe, norm and seed, and every other key of the command line that makes it another run."""
    model = recipe.model
    # A folder's or repository's whole name: the dots in Qwen2.5-0.5B end nothing.
    start = re.sub(r"\.gguf$", "", Path(model.pretrained).name) if model.pretrained else model.model_type
    norm = (model.norm_type or start).lower().replace("_", "-")
    name = f"{recipe.name}-{norm}-seed{recipe.run.seed}"
    told = ("norm_type", "seed", *(() if model.norm_type else ("pretrained",)))
    others = {k: v for k, v in asked.overrides.items() if k not in told and _binds(recipe, k)}
    if not others:
        return name
    words = "".join(f"-{key.removeprefix('model.')}-{_word(value)}" for key, value in others.items())
    if len(words) > 100:
        content = json.dumps({key: _plain(value) for key, value in others.items()}, sort_keys=True)
        words = f"-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return name + words


def _word(value: Any) -> str:
    text = json.dumps(_plain(value)) if isinstance(value, (dict, list, bool)) else str(_plain(value))
    return re.sub(r"[^A-Za-z0-9._+]+", "_", text).strip("_")


def _binds(recipe: Recipe, key: str) -> bool:
    return key.startswith("model.") or bound(key, type(recipe.data), _looks(recipe.run))


def _looks(run: RunArguments) -> bool:
    return looks_at_validation({name: _plain(value) for name, value in vars(run).items()})


def bound(key: str, data_class: type, looks: bool = False) -> bool:
    """Whether a key is part of the identity of a run with this kind of data."""
    data: Any = data_class
    return is_bound(key, RunArguments.free | data.free, data.also_bound, looks)


def _repository(run: RunArguments, asked: Asked) -> str | None:
    """Take the upload out of Trainer's hands, which would push checkpoints: the finished run goes up, in one commit."""
    if not run.push_to_hub:
        return None
    if not run.hub_model_id:
        raise UserError(f"{asked.place('push_to_hub')}: push_to_hub needs hub_model_id, e.g. owner/name")
    run.push_to_hub = False
    return run.hub_model_id


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, complete enough to be a recipe itself (`config.yaml` of a run).

    Every key that decides is there with the value that it had, whoever chose it.
    """
    out: dict[str, Any] = {VERSION_KEY: IDENTITY_VERSION, "model": dict(recipe.sizes)}
    for part in (recipe.model, recipe.data):
        out.update(dataclasses.asdict(part))
    if recipe.model.pretrained is not None:
        del out["model"], out["model_type"]  # they follow from it, and a recipe that gave them would be refused
    if recipe.model.adapter != "lora":
        out = {key: value for key, value in out.items() if not key.startswith("lora_")}
    known = known_keys(type(recipe.data))
    for item in dataclasses.fields(RunArguments):
        name = item.name
        if name not in known or name in _NOT_KEPT or (name in _OF_THE_MACHINE and name not in recipe.given):
            continue
        out[name] = _plain(getattr(recipe.run, name))
    out["push_to_hub"] = recipe.repo_id is not None
    if bound("processes", type(recipe.data)):
        out["processes"] = max(1, recipe.run.world_size)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool, dict)):
        return value
    return str(value)
