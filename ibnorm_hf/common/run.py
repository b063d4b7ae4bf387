# SPDX-License-Identifier: Apache-2.0
"""A run is a folder of files; this is their form, and the one reader of it.

Training writes them; evaluation, hub and studies read them here, and know a run by nothing else. A key that is not
named below may hold anything; a file that is not there reads as empty.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from . import strict_json, strict_yaml
from .errors import UserError
from .forms import Number, check, mismatch
from .listing import CHECKSUMS, MANIFEST, PICKLES, list_files, pickle_reason, problems, require_regular
from .paths import file_sha256
from .strict_json import read_lines, read_object

VERSION = 1  # of the form; environment.json says it as `run_version`
CONFIG, ENVIRONMENT, DATA, METRICS = "config.yaml", "environment.json", "data.json", "metrics.jsonl"
MODEL, EVAL, LOSS_CURVE = "model", "eval", "loss.png"
ADAPTER_CONFIG = "adapter_config.json"
# What may be written anew beside weights without their being others.
CARD, EVAL_RESULTS = "README.md", ".eval_results"


class Environment(TypedDict, total=False):
    """environment.json: what a run ran with."""

    run_version: int
    versions: dict[str, str | None]
    hardware: dict[str, Any]
    processes: int
    commit: str | None
    seed: int | None
    command: list[str]
    strategy: Any
    earlier: list[dict[str, Any]]


class Corpus(TypedDict, total=False):
    """Where the data came from. ``kind`` is embedded, files or hub; a hub corpus has name, split and revision.

    A list or a mixture has ``sources``, each of them such a mapping with what was taken of it.
    """

    kind: str
    name: str
    path: str
    split: str | None
    revision: str | None
    files: int
    bytes_on_disk: int | None
    sources: list[dict[str, Any]]
    seed: int
    stopping_strategy: str


class Shard(TypedDict, total=False):
    """A file of packed blocks."""

    file: str
    blocks: int
    bytes: int
    sha256: str


class Part(TypedDict, total=False):
    """Training or validation data."""

    blocks: int
    tokens: int
    images: int
    bytes_per_token: Number | None
    sha256: str
    shards: list[Shard]


class Data(TypedDict, total=False):
    """data.json: what a run was trained and validated on."""

    corpus: Corpus
    validation_corpus: Corpus
    documents: int
    fingerprints: dict[str, Any]
    train: Part
    validation: Part


class Validation(TypedDict, total=False):
    """eval/validation.json: the last validation."""

    loss: Number | None
    perplexity: Number | None
    bits_per_byte: Number | None
    top1: Number | None
    top5: Number | None
    accuracy: Number | None
    calibration_error: Number | None
    tokens: int
    tokens_seen: int
    stopped_early: dict[str, Any]
    images: int
    images_seen: int
    step: int
    seed: int
    blocks: int
    sha256: str


class Metric(TypedDict, total=False):
    """A line of metrics.jsonl: a logged step, or a validation."""

    step: int
    loss: Number | None
    lr: Number | None
    grad_norm: Number | None
    tokens: int
    tokens_per_s: Number | None
    images_per_s: Number | None
    seconds: Number
    core_seconds: Number
    stopped_early: bool
    eval_loss: Number | None
    share_over_lambda: dict[str, Number]
    shapes: dict[str, dict[str, Number]]


class ModelConfig(TypedDict, total=False):
    """config.json of a model, as far as it is read without transformers."""

    architectures: list[str] | None
    model_type: str | None
    norm_type: str | None
    norm_lambda: Number | list[Number] | None
    norm_order: str | None


class AdapterConfig(TypedDict, total=False):
    """adapter_config.json of PEFT."""

    base_model_name_or_path: str | None
    revision: str | None
    peft_type: str | None


class Run:
    """A run folder, read when asked; ``Run(path)`` reads nothing.

    Every property raises UserError, in one sentence, for a file that is damaged, a link, or holds wrong types.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def model(self) -> Path:
        """Where the final weights are, or will be."""
        return self.folder / MODEL

    @property
    def is_finished(self) -> bool:
        """Whether the final weights are there."""
        return (self.model / "config.json").is_file() or is_adapter(self.model)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved recipe: config.yaml."""
        return strict_yaml.read_mapping(self._file(CONFIG) or self.folder / CONFIG)

    @cached_property
    def environment(self) -> Environment:
        """environment.json; raises UserError also where a later version of this package wrote the run."""
        content: Environment = self._object(ENVIRONMENT, Environment)
        if content.get("run_version", VERSION) > VERSION:
            raise UserError(
                f"run {self.folder} was written in form {content['run_version']}, and this version of ibnorm_hf reads "
                f"up to {VERSION}; update ibnorm_hf"
            )
        return content

    @cached_property
    def data(self) -> Data:
        """data.json."""
        return self._object(DATA, Data)

    @cached_property
    def validation(self) -> Validation:
        """eval/validation.json."""
        return self._object(f"{EVAL}/validation.json", Validation)

    @cached_property
    def metrics(self) -> list[Metric]:
        """The lines of metrics.jsonl; half lines, and lines with wrong types, are left out."""
        path = self._file(METRICS)
        lines: Any = () if path is None else read_lines(path)
        return [line for line in lines if mismatch(line, Metric, "") is None]

    @cached_property
    def sample(self) -> str:
        """eval/sample.txt: what the model wrote."""
        path = self._file(f"{EVAL}/sample.txt")
        return "" if path is None else strict_json.read_text(path, 1 << 20).strip()

    def results(self, name: str) -> dict[str, Any]:
        """The object in ``eval/<name>.json``."""
        return self._object(f"{EVAL}/{name}.json", dict[str, Any])

    def _object(self, name: str, form: Any) -> Any:
        path = self._file(name)
        return {} if path is None else check(read_object(path), form, path)

    def _file(self, name: str) -> Path | None:
        """The path of one of the run's files, None if it is not there. A link counts as damage."""
        path = self.folder / name
        return require_regular(path, self.folder) if path.exists() or path.is_symlink() else None


def is_run(folder: str | Path) -> bool:
    """True for a run folder, finished or not."""
    return (Path(folder) / CONFIG).is_file()


def is_adapter(folder: str | Path) -> bool:
    """True for a folder with a PEFT adapter."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def is_model(folder: str | Path) -> bool:
    """True for a folder with a model or a PEFT adapter."""
    return (Path(folder) / "config.json").is_file() or is_adapter(folder)


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every ``checkpoint-N`` of a run, oldest first, whether complete or not."""
    found = []
    for path in run.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d{1,18})", path.name)
        if match and path.is_dir():
            found.append((int(match.group(1)), path))
    return sorted(found)


def model_folder(path: str | Path) -> Path:
    """The folder with config and weights, or with a PEFT adapter: ``RUN/model`` of a run, else the folder itself.

    Raises:
        UserError: there is no such folder, the run is not finished, or the folder holds no model.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a run, or a folder with config.json and model.safetensors")
    if not is_run(folder):
        if not is_model(folder):
            raise UserError(f"{folder} holds no model: config.json is missing; give a run or a model folder")
        return folder
    run = Run(folder)
    if not run.is_finished:
        steps = checkpoints(folder)
        hint = f", or take its checkpoint {steps[-1][1]}" if steps else ""
        raise UserError(f"run {folder} is not finished: it has no model/config.json; finish it{hint}")
    if run.model.is_symlink():
        raise UserError(f"{run.model} is a link, and links are not followed; give the folder that it leads to")
    return run.model


def model_config(folder: Path) -> ModelConfig:
    """config.json of a model folder. Raises UserError where it is missing, damaged, or holds wrong types."""
    path = require_regular(folder / "config.json", folder)
    return check(read_object(path), ModelConfig, path)


def adapter_config(folder: Path) -> AdapterConfig:
    """adapter_config.json of an adapter. Raises UserError as ``model_config`` does."""
    path = require_regular(folder / ADAPTER_CONFIG, folder)
    return check(read_object(path), AdapterConfig, path)


def require_safetensors(folder: Path) -> None:
    """Refuse weights that are not safetensors, of a model or an adapter.

    Raises:
        UserError: the weights are pickles, or there are none.
    """
    name = "adapter_model.safetensors" if is_adapter(folder) else "*.safetensors"
    if any(folder.glob(name)):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise UserError(f"{folder / pickles[0]} {pickle_reason()}")
    raise UserError(f"{folder} holds no weights: no {name.replace('*', '')} file is there")


_verified: dict[Path, tuple] = {}  # what was read once needs no second reading, as long as it was not touched


def verify_model(folder: Path) -> None:
    """Check a model folder, before anything in it is read, against the list of its files; without a list, its links.

    A card may be rewritten after the list was made; nothing else may change.

    Raises:
        UserError: with exit code 1, naming every file that is missing, damaged or foreign.
    """
    state = tuple((name, *_mark(folder / name)) for name in list_files(folder))
    if _verified.get(folder.resolve()) == state:
        return
    for listing in (CHECKSUMS, MANIFEST):
        if (folder / listing).is_file():
            found = [
                line for line in problems(folder, listing) if not line.startswith((CARD, EVAL_RESULTS, LOSS_CURVE))
            ]
            if found:
                raise UserError(f"{folder} is damaged: {'; '.join(found)}", exit_code=1)
    _verified[folder.resolve()] = state


def _mark(path: Path) -> tuple[int, int, int]:
    entry = path.stat()
    return entry.st_size, entry.st_mtime_ns, entry.st_ino


_NOT_THE_MODEL: tuple[str, ...] = (
    "*.md",
    "LICEN*",
    "NOTICE*",
    MANIFEST,
    CHECKSUMS,
    LOSS_CURVE,
    "rng_state*",
    "trainer_state.json",
)
_NOT_THE_MODEL += ("optimizer.pt", "scheduler.pt")


def fingerprint(places: Iterable[str | Path]) -> str:
    """SHA-256 over config, weights and tokenizer files of folders; over the name alone for a model of the Hub.

    Results record it as ``model_sha256``: a score belongs to the weights that it was measured with.
    """
    checksum = hashlib.sha256()
    for place in places:
        folder = Path(place)
        if not folder.is_dir():
            checksum.update(str(place).encode())
            continue
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            if not path.name.startswith(".") and not any(path.match(pattern) for pattern in _NOT_THE_MODEL):
                checksum.update(path.name.encode() + bytes.fromhex(file_sha256(path)))
    return checksum.hexdigest()


def mean_speed(metrics: Iterable[Metric], unit: str) -> float | None:
    """Mean of the logged tokens or images a second but the first, which holds the warm-up; None without any."""
    lines: list[Any] = list(metrics)
    speeds = [speed for line in lines if (speed := line.get(f"{unit}_per_s"))]
    speeds = speeds[1:] or speeds
    return len(speeds) / sum(1 / speed for speed in speeds) if speeds else None
