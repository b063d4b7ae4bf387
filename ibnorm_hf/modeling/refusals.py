# SPDX-License-Identifier: Apache-2.0
"""What transformers would do in silence with norms that were swapped, and is made to refuse: to save, and to load."""

import functools
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .batch_norms import BatchAreaNorm
from .configuration_ibnorm import NormFlags
from .no_family import DOOR, PLACES, PREFIX, NoFamily
from .norms import ScaledLayerNorm, TokenNorm
from .recognize import iter_norms


def share_refusals() -> None:
    """Make transformers refuse what would lose norms in silence; once, whoever imports this and how often."""
    _share(PreTrainedModel, "save_pretrained", _saving)
    _share(PreTrainedModel, "from_pretrained", _loading)
    _share(AutoConfig, "from_pretrained", _naming_the_door)


def _share(cls: Any, name: str, around: Any) -> None:
    original = vars(cls)[name]
    plain = getattr(original, "__func__", original)
    if plain.__module__ == __name__:
        return
    shared = functools.wraps(plain)(around(plain))
    shared.__module__ = __name__
    setattr(cls, name, shared if plain is original else classmethod(shared))


def _saving(original: Any) -> Any:
    """``replace_norms`` names the model that it is given; one around it, or with norms set by hand, is vanilla."""

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        said = [f"{path}." if path else "" for path in _named(self)]
        for path, modules in iter_norms(self):
            ours = isinstance(modules[0], TokenNorm | BatchAreaNorm | ScaledLayerNorm)
            if ours and not path.startswith(tuple(said)):
                raise ValueError(
                    f"'{path}' is {type(modules[0]).__name__}, which the config of this {type(self).__name__} does "
                    "not say, so it would be loaded with its old norms; call replace_norms on the whole model"
                )
        return original(self, *args, **kwargs)

    return save_pretrained


def _loading(original: Any) -> Any:
    """A host's class reads no file that would refuse it where it is given a config: it takes what weights it finds."""

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_ours(getattr(cls.config_class, "model_type", "")):
            kind = _stored_type(pretrained_model_name_or_path, kwargs)
            if _is_ours(kind):
                how = DOOR if kind.startswith(PREFIX) else "load it by an Auto class, without a vanilla config"
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds a {kind}, whose norms a {cls.__name__} has not; {how}"
                )
        return original(cls, pretrained_model_name_or_path, *args, **kwargs)

    return from_pretrained


def _naming_the_door(original: Any) -> Any:
    """To transformers, a model type that nobody knows is a sign of an old version."""

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            if f"`{PREFIX}" not in str(error):
                raise
            raise ValueError(
                f"{pretrained_model_name_or_path}: the norms of this model were swapped, and its host has no "
                f"registered type; {DOOR}"
            ) from error

    return from_pretrained


def _is_ours(model_type: str) -> bool:
    return model_type.startswith("ibnorm_")


def _stored_type(source: Any, options: dict[str, Any]) -> str:
    """The model type that a model's own config.json gives; empty where there is none, or it was just read."""
    config = options.get("config")
    local = source is not None and Path(source).is_dir()
    if source is None or "gguf_file" in options:
        return ""
    if not local and (config is None or getattr(config, "name_or_path", None) == str(source)):
        return ""  # the Hub need not be asked twice
    adapter = Path(source, "adapter_config.json")
    if local and adapter.is_file() and not Path(source, "config.json").exists():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        return _stored_type(base or None, options)
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source, **{k: v for k, v in options.items() if k in PLACES})
    except OSError:
        return ""
    return str(stored.get("model_type") or "")


def _named(model: Any) -> list[str]:
    """The paths of the models in ``model``, itself among them, whose norms its config says."""
    known = [_words(config) for config in _inside(model.config)]
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        and isinstance(module.config, NormFlags | NoFamily)
        and _words(module.config) in known
    ]


def _inside(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    parts = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(inner for part in parts for inner in _inside(part))]


def _words(config: PreTrainedConfig) -> tuple[Any, ...]:
    """What a config says of norms; models of a composite may have copies of its parts."""
    return type(config), *(getattr(config, name, None) for name in (*_FLAGS, "norm_replacements"))


_FLAGS = tuple(f.name for f in fields(NormFlags))
