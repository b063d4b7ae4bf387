# SPDX-License-Identifier: Apache-2.0
"""What a user points at (a run folder, a model folder, an adapter, a Hub name) -> what to load, where results go."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.run import adapter_config, checkpoints, fingerprint, is_adapter, is_run, require_safetensors, verify_model

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.gguf")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Target:
    """A model to evaluate.

    Args:
        pretrained: folder (absolute) or Hub name of the model, or of the base model of an adapter.
        peft: folder of a PEFT adapter, or None.
        tokenizer: folder of the tokenizer if it is not beside the model.
        run: the run folder that holds the model, or None.
        output: folder for results.
    """

    pretrained: str
    peft: str | None
    tokenizer: str | None
    run: Path | None
    output: Path

    @property
    def model_args(self) -> dict[str, str]:
        """As the harness takes them."""
        args = {"pretrained": self.pretrained, "peft": self.peft, "tokenizer": self.tokenizer}
        return {key: value for key, value in args.items() if value is not None}

    def fingerprint(self) -> str:
        """SHA-256 over config, weights and tokenizer files; over the name alone for a model of the Hub."""
        return fingerprint(filter(None, (self.pretrained, self.peft, self.tokenizer)))


def resolve(name: str) -> Target:
    """Find the model that ``name`` means.

    A run folder means its ``model/``; results of a run land in its ``eval/``, those of one of its checkpoints in
    ``eval/checkpoint-N/``, those of any other model in ``eval/<name>/`` of the current folder.

    Raises:
        UserError: nothing is there, or the folder lacks its config, weights or tokenizer.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if not _HUB_NAME.fullmatch(name):
            raise UserError(f"model path {name} does not exist; give a run folder, a model folder or a Hub name")
        return Target(name, None, None, None, Path("eval", name.replace("/", "__")).absolute())
    path = path.resolve()
    if not path.is_dir():
        raise UserError(f"model path {name} is a file; give the folder that holds it")
    folder = _model_folder(path)
    run = next((p for p in (path, folder.parent) if is_run(p)), None)
    output = Path("eval", path.name).absolute()
    if run is not None:
        output = run / "eval" / ("" if folder.name == "model" else folder.name)
    if is_adapter(folder):
        return _adapter(folder, run, output)
    _check_files(folder)
    return Target(str(folder), None, None, run, output)


def _model_folder(path: Path) -> Path:
    if not is_run(path):
        return path
    if (path / "model").is_dir():
        return path / "model"
    steps = checkpoints(path)
    advice = f"evaluate {steps[-1][1]}, or finish the run" if steps else "finish the run first"
    raise UserError(f"run {path} has no model/ yet; {advice}")


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file() and not any(folder.glob("*.gguf")):
        raise UserError(f"{folder} is neither a run (config.yaml) nor a model (config.json); give one of them")
    if not any(folder.glob("*.gguf")):
        require_safetensors(folder)
    verify_model(folder)
    check_tokenizer(folder)


def check_tokenizer(folder: Path) -> None:
    """Raise UserError unless ``folder`` holds files of a tokenizer."""
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise UserError(f"no tokenizer in {folder}; save one there with tokenizer.save_pretrained('{folder}')")


def _adapter(folder: Path, run: Path | None, output: Path) -> Target:
    base = adapter_config(folder).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder / 'adapter_config.json'} names no base model (base_model_name_or_path); add it")
    require_safetensors(folder)
    verify_model(folder)
    own = any(any(folder.glob(pattern)) for pattern in _TOKENIZERS)
    base_target = resolve(base if Path(base).exists() or not (folder / base).exists() else os.fspath(folder / base))
    return Target(base_target.pretrained, str(folder), str(folder) if own else None, run, output)
