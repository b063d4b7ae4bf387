# SPDX-License-Identifier: Apache-2.0
"""What a folder is, run or model, and what in it is refused unread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.errors import UserError

CARD = "README.md"
EVAL_RESULTS = ".eval_results"
LOSS_CURVE = "loss.png"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# What download tools leave beside the files of a repository.
FOREIGN = (".gitattributes", ".cache/")


def is_run(folder: Path) -> bool:
    """True for a run folder, finished or not."""
    return (folder / "config.yaml").is_file()


def is_adapter(folder: Path) -> bool:
    """True for a folder with a PEFT adapter."""
    return (folder / "adapter_config.json").is_file()


def model_folder(path: str | Path) -> Path:
    """The folder with config and weights, or with a PEFT adapter: ``RUN/model`` of a run, else the folder itself.

    Raises:
        UserError: there is no such folder, the run is not finished, or the folder holds no model.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a run, or a folder with config.json and model.safetensors")
    if is_run(folder):
        model = folder / "model"
        if not (model / "config.json").is_file() and not is_adapter(model):
            newest = max(folder.glob("checkpoint-*"), key=lambda p: p.stat().st_mtime, default=None)
            hint = f", or take its checkpoint {newest}" if newest else ""
            raise UserError(f"run {folder} is not finished: it has no model/config.json; finish it{hint}")
        return model
    if not (folder / "config.json").is_file() and not is_adapter(folder):
        raise UserError(f"{folder} holds no model: config.json is missing; give a run or a model folder")
    return folder


def require_safetensors(folder: Path) -> None:
    """Refuse weights that are not safetensors.

    Raises:
        UserError: the weights are pickles, or there are none.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise UserError(f"{folder / pickles[0]} {pickle_reason()}")
    raise UserError(f"{folder} holds no weights: no .safetensors file is there")


def pickle_reason() -> str:
    """Why a pickle is refused, to follow its name."""
    return (
        "is refused: it is a pickle, which can run any code while it is loaded; where you trust its origin, load it "
        "with transformers and save_pretrained it as safetensors"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: the file is absent, unreadable, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is unreadable: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what it should be: a JSON object")
    return content


def list_files(folder: Path) -> list[str]:
    """Relative paths of all files, with forward slashes, sorted; what download tools add is left out."""
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if not name.startswith(FOREIGN))
