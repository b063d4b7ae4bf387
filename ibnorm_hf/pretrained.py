# SPDX-License-Identifier: Apache-2.0
"""Pretrained checkpoints: found, loaded in fp32, and put into the registered type of their architecture."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

import ibnorm_hf

from . import registration  # noqa: F401 (the console script does not register by itself)
from .common.errors import UserError, one_line
from .common.online import hub_or_cache, reason
from .common.run import require_safetensors, verify_model
from .modeling.configuration_ibnorm import NormFlags
from .modeling.recognize import iter_norms, norm_name

# Belong to the vanilla checkpoint, not to the architecture.
_NOT_CARRIED = ("model_type", "architectures", "auto_map", "transformers_version", "quantization_config")

# Flags that mean something for one norm only: another does not inherit them.
_OF_THE_NORM = ("norm_lambda", "norm_order", "norm_lambda_learned")


@dataclass(frozen=True)
class Pretrained:
    """A model in fp32, its tokenizer, its image processor's file (None: it has none), and the dtype it is stored in."""

    model: PreTrainedModel
    tokenizer: Any
    image_processor: Path | None
    dtype: torch.dtype


def load_pretrained(source: str) -> Pretrained:
    """Load whatever transformers loads: a folder, a Hub id, or a GGUF file (alone in its folder, or named).

    Raises:
        UserError: nothing there, a pickle, damaged, code of its own, not loadable, or weights are missing.
    """
    where, options = _locate(source)
    config = load_config(source)
    safe = None
    if not options:
        safe = True
        if Path(source).is_dir():
            require_safetensors(Path(source))
    name = (config.architectures or [""])[0]
    cls: Any = getattr(transformers, name, None) or getattr(ibnorm_hf, name, None) or AutoModelForCausalLM
    try:
        with _hub(where):
            model, info = cls.from_pretrained(
                where,
                dtype=torch.float32,
                output_loading_info=True,
                use_safetensors=safe,
                trust_remote_code=False,
                **options,
            )
    except Exception as error:  # transformers and safetensors raise whatever their parts raise
        raise _not_loaded(source, error) from None
    if missing := info["missing_keys"]:
        # They would be random numbers, and the model would be taken for a pretrained one.
        raise UserError(f"{source} lacks {len(missing)} weights of {cls.__name__}, first {min(missing)}")
    for kind in ("unexpected_keys", "mismatched_keys"):
        if info[kind]:  # as an export refuses them: what is not read would be lost without a word
            odd = min(map(str, info[kind]))
            raise UserError(f"{source}: weights and config.json disagree ({kind.replace('_', ' ')}: {odd})")
    if options:
        # GGUF weights come dequantized, in a model that transformers still takes for quantized: it could not be saved.
        plain = type(model)(config)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        model = plain
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    pictures = image_processor_file(source) if model.main_input_name == "pixel_values" else None
    return Pretrained(model, load_tokenizer(source), pictures, stored)


def load_config(source: str) -> PreTrainedConfig:
    """The config of a pretrained model, without its weights. Raises UserError as ``load_pretrained`` does."""
    where, options = _locate(source)
    if Path(where).is_dir():
        verify_model(Path(where))
    try:
        with _hub(where):
            return AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
    except Exception as error:  # as above
        raise _not_loaded(source, error) from None


def load_tokenizer(source: str) -> Any:
    """The tokenizer beside a pretrained model; None where there is none."""
    where, options = _locate(source)
    try:
        with _hub(where):
            return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def image_processor_file(source: str) -> Path | None:
    """The settings of the image processor beside a pretrained model; None where there is none."""
    try:
        with _hub(source):
            return Path(str(cached_file(source, IMAGE_PROCESSOR_NAME)))
    except OSError:
        return None


def is_gguf(source: str) -> bool:
    """Whether a pretrained model is a GGUF file, which transformers finds by an option only."""
    return bool(_locate(source)[1])


def registered_config(config: PreTrainedConfig, **flags: Any) -> PreTrainedConfig | None:
    """The config of our model type with the sizes of a vanilla one; None where the architecture has no such type.

    A flag of another norm than the config's own is not inherited by the new one: lambda, its order, and learning it.

    Raises:
        ValueError: a norm flag is outside its domain.
    """
    kind = config.model_type if config.model_type.startswith("ibnorm_") else f"ibnorm_{config.model_type}"
    if kind not in CONFIG_MAPPING:
        return None
    # A factor on the embeddings of a model that was trained without it would only break it.
    sizes = {"norm_embedding_scale": False} | {k: v for k, v in config.to_dict().items() if k not in _NOT_CARRIED}
    if "norm_type" in flags:
        sizes = {k: v for k, v in sizes.items() if k not in _OF_THE_NORM}
    return CONFIG_MAPPING[kind](**{**sizes, **flags})


def as_registered(model: PreTrainedModel, config: PreTrainedConfig | None) -> PreTrainedModel | None:
    """A model whose norms were replaced as ``config`` says, which made it one of our model type; None without a type.

    Raises:
        ValueError: the model has norms that the config's flags do not make, e.g. two kinds of IBNorm.
    """
    if config is None:
        return None
    if not isinstance(model.config, NormFlags):
        odd = next(
            (path, modules[0]) for path, modules in iter_norms(model) if norm_name(modules[0]) != config.norm_type
        )
        raise ValueError(
            f"'{odd[0]}' is {odd[1]}, which one {type(config).__name__} cannot say beside norm_type "
            f"{config.norm_type}; swap all norms, or start from a model with its host's own"
        )
    for flag in (f.name for f in fields(NormFlags)):
        mine, asked = getattr(model.config, flag), getattr(config, flag)
        if mine != asked and (flag != "norm_bias" or config.norm_affine):
            raise ValueError(f"{flag} is {mine} in this model and cannot become {asked}")
    return model


def _hub(source: str) -> Any:
    """What is no local path is asked of the Hub, if that answers."""
    return nullcontext() if Path(source).exists() else hub_or_cache()


def _locate(source: str) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if path.suffix != ".gguf" and (not path.is_dir() or (path / "config.json").exists()):
        return source, {}
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(files) != 1:
        hint = f"; give {path / 'model'}" if (path / "model" / "config.json").is_file() else ""
        raise UserError(f"{source} holds no model: neither config.json nor exactly one .gguf file is there{hint}")
    return str(files[0].parent), {"gguf_file": files[0].name}


def _not_loaded(source: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"{source} comes with code of its own, which is never run: give a model whose architecture transformers or "
            "ibnorm_hf has, or save it as one"
        )
    why = one_line(error) if Path(source).exists() else reason(error)
    return UserError(f"{source} cannot be loaded: {why}")
