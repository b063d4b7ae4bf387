# SPDX-License-Identifier: Apache-2.0
"""Which part of a model is trained: all of it, its norms alone, or a PEFT adapter on frozen weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ...common.errors import UserError
from ...modeling.recognize import iter_norms
from ...pretrained import is_gguf
from ..keys.arguments import ModelArguments


def take_trained_part(model: Any, arguments: ModelArguments) -> Any:
    """Freeze what the recipe leaves as it is; returns the model to train, which an adapter wraps.

    Raises:
        UserError: there is nothing to train, or PEFT cannot place its adapter.
    """
    if arguments.adapter is not None:
        return _with_adapter(model, arguments)
    if arguments.train_only is not None:
        train_only_norms(model)
    return model


def train_only_norms(model: nn.Module) -> None:
    """Freeze every parameter outside the normalizations. Raises UserError where these have none."""
    model.requires_grad_(False)
    for _, modules in iter_norms(model):
        for module in modules:
            module.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("train_only norms: the norms have no parameter to train; set norm_affine true")


def trained_counts(model: nn.Module) -> tuple[int, int]:
    """(trained, all) parameters, tied ones counted once."""
    counts = {id(p): (p.numel() if p.requires_grad else 0, p.numel()) for p in model.parameters()}
    return sum(trained for trained, _ in counts.values()), sum(size for _, size in counts.values())


def _with_adapter(model: Any, arguments: ModelArguments) -> Any:
    from peft import LNTuningConfig, LoraConfig, TaskType, get_peft_model

    if is_gguf(str(arguments.pretrained)):
        raise UserError(
            f"an adapter finds its base by name, which {arguments.pretrained}, a GGUF file, does not have: make it a "
            "folder by `ibnorm-hf convert`, and give that as `pretrained`"
        )
    norms = sorted({path.rpartition(".")[2] for path, _ in iter_norms(model)})
    config: Any
    if arguments.adapter == "norms":
        config = LNTuningConfig(task_type=TaskType.CAUSAL_LM, target_modules=norms)
    else:
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=arguments.lora_dropout,
            target_modules=arguments.lora_target_modules,
            modules_to_save=norms if arguments.lora_norms else None,
            fan_in_fan_out=model.config.model_type.endswith("gpt2"),  # its linear maps are stored transposed
        )
    # The adapter remembers its base by this name, which must still be right in another working directory.
    local = Path(str(arguments.pretrained))
    model.name_or_path = str(local.resolve()) if local.exists() else str(arguments.pretrained)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
            warnings.filterwarnings("ignore", "Unsupported layer type")  # LN-tuning copies a norm, whatever it is
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"adapter {arguments.adapter}: {' '.join(str(error).split())[:300]}") from None


def is_adapter(model: Any) -> bool:
    """Whether a model is wrapped by PEFT; does not import it."""
    return hasattr(model, "peft_config")


def load_adapter(model: Any, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into the adapter of a model, every one of them.

    Raises:
        UserError: the checkpoint holds no adapter.
        ValueError: a tensor is missing or unexpected.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    path = checkpoint / "adapter_model.safetensors"
    if not path.is_file():
        raise UserError(f"checkpoint {checkpoint} holds no adapter_model.safetensors")
    weights = load_file(path)
    if odd := set(get_peft_model_state_dict(model)) ^ set(weights):
        raise ValueError(f"{path.name} and the recipe's adapter differ in {sorted(odd)[:3]}")
    set_peft_model_state_dict(model, weights)
