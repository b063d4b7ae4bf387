# SPDX-License-Identifier: Apache-2.0
"""Read a recipe: YAML file + command line -> checked dataclasses. Every mistake is one sentence."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from ...common.errors import UserError, did_you_mean, nearest
from .arguments import REFUSED_KEYS, DataArguments, ModelArguments, RunArguments
from .schedule import LambdaSchedule

# Old and new name of the same key, whichever the installed Transformers knows.
_SYNONYMS = (
    ("activation_checkpointing", "gradient_checkpointing"),
    ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
)


@dataclass
class Recipe:
    """A checked recipe. ``sizes`` is the ``model:`` mapping, ``name`` the recipe's short name.

    ``repo_id`` is where the finished run is published, by ``push_to_hub: true`` and ``hub_model_id``.
    """

    name: str
    model: ModelArguments
    sizes: dict[str, Any]
    data: DataArguments
    run: RunArguments
    given: frozenset[str]
    repo_id: str | None = None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice: YAML would silently keep the last.

    Nor does it know aliases: a recipe needs none, and a few lines of them can stand for gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Parser(HfArgumentParser):
    """argparse exits the process with a usage page; a recipe deserves one sentence."""

    def error(self, message: str) -> Any:
        raise UserError(message)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a recipe file into a flat mapping (``model`` stays nested).

    Raises:
        UserError: the file is absent, not UTF-8, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest(path, Path("recipes").rglob("*.yaml"))
        raise UserError(f"recipe file {path} does not exist{f'; did you mean {near}?' if near else ''}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe file {path} cannot be read: {error}") from None
    try:
        content = yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain values only
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{where}: not valid YAML: {problem}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, one `key: value` a line")
    return content


def parse_overrides(arguments: list[str]) -> dict[str, list[str]]:
    """Split ``--key value ... --other=value`` into a mapping; a key without value means true."""
    overrides: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            current = overrides[_normal(key)] = [value] if equals else []
        elif current is None:
            raise UserError(f"command line: '{word}' is not a --key; write `RECIPE --key value`")
        else:
            current.append(word)
    return overrides


def _normal(key: str) -> str:
    head, dot, tail = key.partition(".")
    return head.replace("-", "_") + dot + tail.replace("-", "_")


def _known_keys(data: type = DataArguments) -> dict[str, type]:
    return {f.name: cls for cls in (ModelArguments, data, RunArguments) for f in dataclasses.fields(cls)}


def _check_key(key: str, where: str, known: dict[str, type]) -> str:
    """Return the key under the name that the installed Transformers uses, or raise UserError."""
    for pair in _SYNONYMS:
        if key in pair and key != pair[0] and pair[0] in known:
            return pair[0]
        if key in pair and key not in known:
            return next(name for name in pair if name in known)
    if key in REFUSED_KEYS:
        raise UserError(f"{where}: key '{key}' is not supported: {REFUSED_KEYS[key]}")
    if key not in known:
        raise UserError(f"{where}: unknown key '{key}'{did_you_mean(key, [*known, 'model'])}")
    return key


def _words(value: Any) -> list[str]:
    """A YAML value as command-line words, so that file and command line are checked by one parser."""
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, dict):
        return [json.dumps(value)]
    if isinstance(value, list):
        return [str(item) for item in value]
    return [str(value)]


def _scalar(text: str) -> Any:
    """A command-line word as YAML would read it; `1e-5`, a string in YAML 1.1, is a number here."""
    try:
        return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _merge_sizes(file_sizes: Any, overrides: dict[str, list[str]], path: Path) -> dict[str, Any]:
    if file_sizes is None:
        file_sizes = {}
    if not isinstance(file_sizes, dict):
        raise UserError(f"{path}: key 'model' is a mapping of sizes, e.g. `model: {{hidden_size: 256}}`")
    sizes = {str(k): _scalar(v) if isinstance(v, str) else v for k, v in file_sizes.items()}
    for key in [k for k in overrides if k.startswith("model.")]:
        words = overrides.pop(key)
        if len(words) != 1:
            raise UserError(f"command line: --{key} takes one value")
        sizes[key.removeprefix("model.")] = _scalar(words[0])
    return sizes


def load_recipe(path: str | Path, arguments: list[str] | None = None, *, data_class: type = DataArguments) -> Recipe:
    """Read and check a recipe and the command-line keys that override it.

    ``data_class`` holds the keys of the data; one other than text has ``rules()``: (key, whether right, message) each.

    Raises:
        UserError: on any unknown, misspelt, refused or mistyped key, naming where it stands.
    """
    path = Path(path)
    content, overrides = read_yaml(path), parse_overrides(list(arguments or []))
    sizes = _merge_sizes(content.pop("model", None), overrides, path)
    known = _known_keys(data_class)
    words: dict[str, list[str]] = {}
    where: dict[str, str] = {}
    for key, value in content.items():
        name = _check_key(key, str(path), known)
        where[name] = str(path)
        if value not in (None, []):  # `report_to: []` is how a resolved recipe says none
            words[name] = _words(value)
        else:
            words.pop(name, None)
    for key, values in overrides.items():
        name = _check_key(key, "command line", known)
        where[name] = "command line"
        if [v.lower() for v in values] in (["null"], ["none"]) and name != "report_to":
            words.pop(name, None)
        else:
            words[name] = values or ["true"]
    if not torch.accelerator.is_available():
        # Said for the user, or TrainingArguments would refuse bf16 on a machine that can do it.
        words.setdefault("use_cpu", ["true"])
    model, data, run = _parse(words, where, data_class)
    recipe = Recipe(_name(path), model, sizes, data, run, frozenset(where), _repository(run, where, str(path)))
    _check_start(recipe, where, str(path))
    _check_values(recipe, where, str(path))
    return recipe


def _parse(
    words: dict[str, list[str]], where: dict[str, str], data_class: type
) -> tuple[ModelArguments, Any, RunArguments]:
    parser = _Parser((ModelArguments, data_class, RunArguments), allow_abbrev=False, add_help=False)  # type: ignore[arg-type]
    # `--key=value` for one value: argparse would take a leading dash for an option otherwise.
    argv: list[str] = []
    for key, values in words.items():
        argv += [f"--{key}={values[0]}"] if len(values) == 1 else [f"--{key}", *values]
    try:
        parsed = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, ImportError, OSError) as error:
        message = " ".join(str(error).split())
        culprit = _culprit(message, words)
        hint = "" if not culprit or culprit in message else f"key {culprit}: "
        raise UserError(f"{where.get(culprit, 'recipe')}: {hint}{_readable(message)}") from None
    return parsed[0], parsed[1], parsed[2]


def _culprit(message: str, words: dict[str, list[str]]) -> str:
    """The key that an error of argparse or TrainingArguments is about: named in it, or else quoted by its value."""
    named = re.search(r"--(\w+)", message)
    if named and named.group(1) in words:
        return named.group(1)
    mentioned = [key for key in words if key in message]
    quoted = [key for key, values in words.items() if any(len(v) > 2 and v in message for v in values)]
    return (mentioned or quoted or [""])[0]


def _readable(message: str) -> str:
    return re.sub(r"argument --(\w+)(/--[\w-]+)*", r"key \1", message)


def _name(path: Path) -> str:
    """`recipes/llama/tiny.yaml` -> `llama-tiny`; a file in the current folder keeps its own name."""
    parent = path.resolve().parent.name
    return f"{parent}-{path.stem}" if parent in ("llama", "gpt2", "vit", "resnet", "finetune") else path.stem


def _check_start(recipe: Recipe, where: dict[str, str], default: str) -> None:
    """Keys of what is trained and from where, which contradict each other more easily than others."""
    model: Any = recipe.model
    text = isinstance(recipe.data, DataArguments)
    pretrained = model.pretrained is not None
    if model.norm_lambda is not None and len(model.norm_lambda) == 1:
        model.norm_lambda = model.norm_lambda[0]
    flags = ("norm_type", "norm_lambda", "norm_order", "norm_affine", "norm_bias")
    swapped = any(getattr(model, flag) is not None for flag in flags)
    whole = "adapter" if model.adapter is not None else "pretrained"
    rules = [
        (whole, text or not (pretrained or model.adapter), "is for language models"),
        ("norm_lambda_schedule", text or not model.norm_lambda_schedule, "is for language models"),
        ("model", not pretrained or not recipe.sizes, "follows from `pretrained`; leave it out"),
        ("model_type", not pretrained or "model_type" not in where, "follows from `pretrained`; leave it out"),
        ("train_only", model.train_only in (None, "norms"), "must be norms, or null"),
        ("adapter", model.adapter in (None, "lora", "norms"), "must be lora, norms, or null"),
        ("adapter", model.adapter is None or pretrained, "needs `pretrained`: the frozen weights it stands on"),
        ("adapter", model.adapter is None or model.train_only is None, "and train_only exclude each other"),
        (
            "adapter",
            model.adapter is None or not (swapped or model.norm_lambda_schedule),
            "remembers only the name of its base, so the base must have its norms already: make one with "
            "`ibnorm-hf convert`, give it as `pretrained`, and leave the norm flags out",
        ),
        ("lora_r", model.lora_r > 0, "must be at least 1"),
        ("lora_dropout", 0 <= model.lora_dropout < 1, "must lie between 0 and 1"),
    ]
    for key, right, message in rules:
        if not right:
            raise UserError(f"{where.get(key, default)}: key {key} {message}")
    if model.norm_lambda_schedule is not None:
        model.norm_lambda_schedule = dataclasses.asdict(LambdaSchedule.parse(model.norm_lambda_schedule))
    if pretrained and text and "tokenizer" not in where:
        recipe.data.tokenizer = model.pretrained


def _check_values(recipe: Recipe, where: dict[str, str], default: str) -> None:
    data: Any = recipe.data
    run = recipe.run
    rules = [
        ("max_steps", run.max_steps > 0, "must be at least 1"),
        *(_text_rules(data) if isinstance(data, DataArguments) else data.rules()),
        ("per_device_train_batch_size", run.per_device_train_batch_size > 0, "must be at least 1"),
        ("gradient_accumulation_steps", run.gradient_accumulation_steps > 0, "must be at least 1"),
        ("grad_spike_factor", run.grad_spike_factor is None or run.grad_spike_factor > 1, "must be above 1"),
        ("learning_rate", 0 <= run.learning_rate < float("inf"), "must be a number of at least 0"),
        ("eval_strategy", _plain(run.eval_strategy) != "epoch", "must be steps or no: a run has no epochs"),
        ("save_strategy", _plain(run.save_strategy) in ("steps", "no"), "must be steps or no: a run has no epochs"),
    ]
    for key, right, message in rules:
        if not right:
            raise UserError(f"{where.get(key, default)}: key {key} {message}")
    _apply_global_batch(run, where, default)
    if "dataloader_pin_memory" not in where:
        run.dataloader_pin_memory = run.device.type != "cpu"  # torch warns where there is nothing to pin for
    if run.output_dir is None or "output_dir" not in where:
        start = Path(recipe.model.pretrained).stem if recipe.model.pretrained else recipe.model.model_type
        norm = (recipe.model.norm_type or start).lower().replace("_", "-")
        run.output_dir = f"runs/{recipe.name}-{norm}-seed{run.seed}"


def _text_rules(data: DataArguments) -> list[tuple[str, bool, str]]:
    prompts = data.prompt_column is not None
    return [
        ("prompt_column", not prompts or data.completion_column is not None, "needs completion_column beside it"),
        ("completion_column", data.completion_column is None or prompts, "needs prompt_column beside it"),
        ("completion_column", not prompts or data.completion_column != data.prompt_column, "is prompt_column too"),
        ("text_column", not prompts or data.text_column == "text", "and prompt_column exclude each other"),
        ("prompt_column", not prompts or data.corpus != "embedded", "needs columns: the embedded corpus has none"),
        ("block_size", data.block_size > 1, "must be at least 2"),
        ("token_budget", data.token_budget is None or data.token_budget >= data.block_size, "must hold a block"),
        ("validation_tokens", data.validation_tokens >= data.block_size, "must hold at least one block"),
        ("validation_fraction", 0 < data.validation_fraction < 0.5, "must lie between 0 and 0.5"),
        ("max_bad_records", data.max_bad_records >= 0, "must not be negative"),
        ("prepare_workers", data.prepare_workers is None or data.prepare_workers > 0, "must be at least 1"),
    ]


def _repository(run: RunArguments, where: dict[str, str], default: str) -> str | None:
    """Take the upload out of Trainer's hands, which would push checkpoints: the finished run goes up, in one commit."""
    if not run.push_to_hub:
        return None
    if not run.hub_model_id:
        raise UserError(f"{where.get('push_to_hub', default)}: push_to_hub needs hub_model_id, e.g. owner/name")
    run.push_to_hub = False
    return run.hub_model_id


def _apply_global_batch(run: RunArguments, where: dict[str, str], default: str) -> None:
    """Derive gradient_accumulation_steps from global_batch_size and the number of processes."""
    micro = run.per_device_train_batch_size * max(1, run.world_size)
    if run.global_batch_size is None:
        run.global_batch_size = micro * run.gradient_accumulation_steps
        return
    if run.global_batch_size <= 0 or run.global_batch_size % micro:
        raise UserError(
            f"{where.get('global_batch_size', default)}: global_batch_size {run.global_batch_size} must be a multiple "
            f"of per_device_train_batch_size x processes = {micro}; change one of them"
        )
    steps = run.global_batch_size // micro
    if "gradient_accumulation_steps" in where and run.gradient_accumulation_steps != steps:
        raise UserError(
            f"{where['gradient_accumulation_steps']}: gradient_accumulation_steps {run.gradient_accumulation_steps} "
            f"disagrees with global_batch_size {run.global_batch_size}, which needs {steps}; give only one of the two"
        )
    run.gradient_accumulation_steps = steps


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, complete enough to be a recipe itself (`config.yaml` of a run).

    Of TrainingArguments only keys that were given or that differ from the library's default are kept.
    """
    out: dict[str, Any] = {"model": dict(recipe.sizes)}
    for part in (recipe.model, recipe.data):
        out.update(dataclasses.asdict(part))
    if recipe.model.pretrained is not None:
        del out["model"], out["model_type"]  # they follow from it, and a recipe that gave them would be refused
    if recipe.model.adapter != "lora":
        out = {key: value for key, value in out.items() if not key.startswith("lora_")}
    from transformers import TrainingArguments

    library = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    for item in dataclasses.fields(RunArguments):
        if item.name in REFUSED_KEYS or item.name in ("dry_run", "resume") or item.name.startswith("_"):
            continue
        value = getattr(recipe.run, item.name, None)
        own = item.name not in library or item.default != library[item.name]
        if own or item.name in recipe.given or item.name == "seed":
            out[item.name] = _plain(value)
    # The global batch says it all; accumulation follows from it and from the number of processes.
    out.pop("gradient_accumulation_steps", None)
    out["per_device_train_batch_size"] = recipe.run.per_device_train_batch_size
    return out


def _plain(value: Any) -> Any:
    if hasattr(value, "value"):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool, dict)):
        return value
    return str(value)
