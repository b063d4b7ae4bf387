# SPDX-License-Identifier: Apache-2.0
"""What a user points at (a run folder, a model folder, an adapter, a Hub name) -> what to load, where results go."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ..common.base import Base, base_of, base_remark
from ..common.errors import UserError
from ..common.run import Run, checkpoints, fingerprint, is_adapter, is_run, require_safetensors, verify_model

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
        revision: commit of a base model of the Hub that an adapter was trained on, where it is written down.
    """

    pretrained: str
    peft: str | None
    tokenizer: str | None
    run: Path | None
    output: Path
    revision: str | None = None

    @property
    def model_args(self) -> dict[str, str]:
        """As the harness takes them."""
        args = {"pretrained": self.pretrained, "peft": self.peft, "tokenizer": self.tokenizer}
        args["revision"] = self.revision
        return {key: value for key, value in args.items() if value is not None}

    @property
    def dtype(self) -> str:
        """In what weights are loaded where nobody says it: as stored, the base of a run's adapter as it was trained."""
        return "float32" if self.peft is not None and self.run is not None else "auto"

    @property
    def autocast(self) -> str | None:
        """The mixed precision that the run was trained and validated in; None without one, and for a foreign model."""
        recipe = Run(self.run).config if self.run is not None else {}
        return "bfloat16" if recipe.get("bf16") else "float16" if recipe.get("fp16") else None

    def say_of_base(self) -> None:
        """Tell people where a whole model's base is another one now; an adapter's is refused when it is resolved."""
        if self.peft is None and os.environ.get("RANK", "0") == "0" and (remark := base_remark(Path(self.pretrained))):
            print(remark, file=sys.stderr)

    def fingerprint(self) -> str:
        """SHA-256 over config, weights and tokenizer files; over the name alone for a model of the Hub."""
        base = Base(Path(self.pretrained), self.revision).name
        return fingerprint(filter(None, (base, self.peft, self.tokenizer)))


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
    check_tokenizer(folder)
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


def check_tokenizer(folder: Path) -> None:
    """Raise UserError unless ``folder`` holds files of a tokenizer."""
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise UserError(f"no tokenizer in {folder}; save one there with tokenizer.save_pretrained('{folder}')")


def _adapter(folder: Path, run: Path | None, output: Path) -> Target:
    base = base_of(folder)
    require_safetensors(folder)
    verify_model(folder)
    own = any(any(folder.glob(pattern)) for pattern in _TOKENIZERS)
    if base.place.is_dir():
        _check_files(base.place)
        if not own:
            check_tokenizer(base.place)
    pretrained = str(base.place.resolve() if base.place.is_dir() else base.place)
    return Target(pretrained, str(folder), str(folder) if own else None, run, output, base.commit)
