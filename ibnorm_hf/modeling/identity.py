# SPDX-License-Identifier: Apache-2.0
"""What a transformers model calls itself after its norms were swapped: never what it was before.

A host of a known family becomes that family's class, with a config that says its flags; so what is saved loads swapped.
Any other host, and norms that one config cannot say, get a model type that nobody knows and a config that no class
accepts: what is saved is refused by everything, with or without this package, rather than loaded with the old norms.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .batch_norms import BatchAreaNorm
from .configuration_ibnorm import NormFlags
from .norms import ScaledLayerNorm, TokenNorm
from .peft_targets import share_peft_targets
from .private_transformers import NAME, name_of, set_name
from .recognize import iter_norms
from .scope import chosen_norms
from .wrappers import unwrapped

# The host's class -> ours; each family enters itself when it is imported.
FAMILIES: dict[type, type] = {}


class Swapped:
    """Base of every model class that says that its norms were swapped."""


class NoFamily:
    """Put before a host's config class: its norms were swapped, and no registered config can say so."""

    norm_host: str
    norm_replacements: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        share_peft_targets(self.model_type, self.norm_host)  # type: ignore[attr-defined]
        return super().to_dict()  # type: ignore[misc, no-any-return]

    def to_json_file(self, json_file_path: Any, *args: Any, **kwargs: Any) -> None:
        """As any config's, with a dtype that torch has not: the host's own class would only warn of the model type."""
        kept = self.dtype  # type: ignore[attr-defined]
        self.__dict__["dtype"] = (
            f"the norms of this {self.norm_host} were swapped by ibnorm_hf, which has no type to load it by: build the "
            "original model, call replace_norms as before, and load these weights into it"
        )
        try:
            super().to_json_file(json_file_path, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.__dict__["dtype"] = kept

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (_host(type(self)),), self.__dict__.copy()


class NoFamilyModel(Swapped):
    """Put before a host's model class, so that its name is not the host's."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (_host(type(self)),), self.__dict__.copy()


@dataclass(frozen=True)
class Identity:
    """What a model was called before a swap, and what it is called since."""

    model: PreTrainedModel
    old_class: type
    old_config: PreTrainedConfig
    new_config: PreTrainedConfig
    old_names: tuple[str, str]


def take_identity(model: nn.Module, flags: Mapping[str, Any], swapped: Sequence[str]) -> tuple[Identity, ...]:
    """Rename every outermost transformers model in ``model`` whose norms were swapped.

    Args:
        model: as it was given to ``replace_norms``, already with its new norms.
        flags: the norm flags that it was given.
        swapped: the paths of the norms that were swapped.
    """
    base = unwrapped(model)
    out, inside = [], ""
    for path, module in base.named_modules():
        if isinstance(module, PreTrainedModel) and not (inside and path.startswith(inside)):
            prefix = f"{path}." if path else ""
            mine = [name.removeprefix(prefix) for name in swapped if name.startswith(prefix)]
            if mine:
                out.append(_rename(module, dict(flags), mine, whole=not path))
            if not path:
                break
            inside = prefix
    return tuple(out)


def return_identity(identities: Sequence[Identity]) -> None:
    """Undo ``take_identity``; a model whose norms were swapped again since keeps a name that nothing loads."""
    for identity in identities:
        model: Any = identity.model
        if model.config is not identity.new_config:
            _become(model, _without_family(_host(type(model))))
            continue
        old = identity.old_config
        # One of ours is that of an earlier swap, which knows it by identity; a host's may be another model's as well.
        config: Any = old if isinstance(old, NormFlags | NoFamily) else copy.copy(old)
        today = model.config.__dict__
        config.__dict__.update((k, v) for k, v in today.items() if k in config.__dict__ and k not in _NAMES)
        _put_config(model, {id(model.config): config})
        model.__class__ = identity.old_class
        set_name(config, identity.old_names[0])
        model.name_or_path = identity.old_names[1]


def share_refusal() -> None:
    """Make ``save_pretrained`` refuse a model that holds norms of ours and a config that would load others.

    ``replace_norms`` names the model that it is given; one around it, or one whose norms were set by hand, is vanilla.
    """
    original: Any = PreTrainedModel.save_pretrained
    if hasattr(original, "__wrapped__") and original.__module__ == __name__:
        return

    @functools.wraps(original)
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

    save_pretrained.__module__ = __name__
    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


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
_NAMES = (*_FLAGS, "norm_replacements", "architectures", NAME)


def _rename(model: Any, flags: dict[str, Any], swapped: list[str], *, whole: bool) -> Identity:
    before = type(model), model.config, (name_of(model.config), model.name_or_path)
    own: Any = type(model)
    if not issubclass(own, Swapped) or issubclass(own, NoFamilyModel):
        own = FAMILIES.get(_host(own))
    settings = None if own is None else _settings(model, own, flags, swapped, whole)
    if settings is None:
        _become(model, _without_family(_host(type(model))))
    else:
        _become(model, own)
        for name, value in settings.items():
            setattr(model.config, name, value)
        model.config.validate_norm_flags()
        model._complete()
    return Identity(model, before[0], before[1], model.config, before[2])


def _settings(model: Any, own: Any, flags: dict[str, Any], swapped: list[str], whole: bool) -> dict[str, Any] | None:
    """The flags of a config that builds the norms which stand in ``model`` now; None where no config does."""
    config = model.config
    norms = {path: modules[0] for path, modules in iter_norms(model)}
    earlier: set[str] = set()
    if isinstance(config, NormFlags):
        earlier = {path for path, _ in chosen_norms(model, config.norm_scope, config.norm_exclude or ())}
    elif isinstance(config, NoFamily):
        earlier = set(config.norm_replacements)
    if not earlier <= set(swapped):
        return None  # norms of two kinds
    if not whole:  # paths and lambdas were those of the model around it
        flags |= {"norm_scope": "all", "exclude": [path for path in norms if path not in swapped]}
        if isinstance(flags["norm_lambda"], Sequence):
            flags["norm_lambda"] = [norms[path].norm_lambda for path in swapped]
    if any(getattr(norms[path], "output_scale", 1.0) != 1.0 for path in swapped) and not flags["norm_depth_scale"]:
        flags["norm_depth_scale"] = getattr(config, "norm_depth_scale", None)  # what was scaled stayed so
        if flags["norm_depth_scale"] is None:
            return None
    biases = {getattr(norms[path], "bias", None) is not None for path in swapped}
    if flags["norm_affine"] and len(biases) > 1:
        return None
    flags["norm_bias"] = biases.pop() if flags["norm_affine"] else own.config_class.norm_bias
    flags["norm_exclude"] = list(flags["exclude"]) or None
    flags["norm_embedding_scale"] = bool(getattr(config, "norm_embedding_scale", False))
    for name in ("norm_lambda", "norm_scope"):
        if isinstance(flags[name], Sequence) and not isinstance(flags[name], str):
            flags[name] = list(flags[name])
    return {name: flags[name] for name in _FLAGS}


def _become(model: Any, cls: Any) -> None:
    """Give ``model`` another class, and a config of its own of that class's; every module that read the old reads it.

    Where the weights once came from is forgotten: whoever looks there for this model would find another.
    """
    old = model.config
    memo: dict[int, Any] = {}
    new = copy.deepcopy(old, memo)
    for name in (*_FLAGS, "norm_replacements", "auto_map", "model_type"):
        new.__dict__.pop(name, None)
    if issubclass(cls, NoFamilyModel):
        new.__class__ = _without_family(_host(type(old)))
        new.norm_replacements = {path: str(modules[0]) for path, modules in iter_norms(model)}
    else:
        new.__class__ = cls.config_class
    new_of = {key: value for key, value in memo.items() if isinstance(value, PreTrainedConfig)}
    _put_config(model, {**new_of, id(old): new})
    model.__class__ = cls
    set_name(new, "")
    model.name_or_path = ""


def _put_config(model: nn.Module, new_of: Mapping[int, Any]) -> None:
    for module in model.modules():
        config = vars(module).get("config")
        if id(config) in new_of:
            module.config = new_of[id(config)]


def _host(cls: type) -> Any:
    """The class of transformers that one of ours stands on; any other class itself."""
    for c in cls.__mro__:
        if issubclass(c, PreTrainedModel | PreTrainedConfig) and not issubclass(c, Swapped | NormFlags | NoFamily):
            return c
    raise TypeError(f"{cls.__name__} stands on no class of transformers")


@functools.cache
def _without_family(host: Any) -> Any:
    """The class of a model, or of a config, that no family can name."""
    name = f"IBNorm{host.__name__}"
    if issubclass(host, PreTrainedModel):
        return type(name, (NoFamilyModel, host), {"__module__": __name__})
    kind = f"ibnorm_swapped_{host.model_type}"
    return type(name, (NoFamily, host), {"__module__": __name__, "model_type": kind, "norm_host": host.model_type})


def _blank(host: Any) -> Any:
    cls = _without_family(host)
    return cls.__new__(cls)
