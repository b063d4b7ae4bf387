# SPDX-License-Identifier: Apache-2.0
"""What a transformers model calls itself after its norms were swapped: never what it was before.

A host of a known family becomes that family's class, with a config that says its flags; so what is saved loads swapped.
Any other host, and norms that one config cannot say, get a model type that nobody knows (``no_family.py``).
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_ibnorm import NormFlags
from .no_family import NoFamily, NoFamilyModel, Swapped, describe_norms, has_scaled_embedding, host_of, without_family
from .private_transformers import NAME, name_of, set_name
from .recognize import iter_norms
from .report import Identity
from .scope import chosen_norms
from .wrappers import unwrapped

# The host's class -> ours; each family enters itself when it is imported.
FAMILIES: dict[type, type] = {}


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
            _become(model, without_family(host_of(type(model))), None)
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


_FLAGS = tuple(f.name for f in fields(NormFlags))
_NAMES = (*_FLAGS, "norm_replacements", "architectures", NAME)


def _rename(model: Any, flags: dict[str, Any], swapped: list[str], *, whole: bool) -> Identity:
    before = type(model), model.config, (name_of(model.config), model.name_or_path)
    own: Any = type(model)
    if not issubclass(own, Swapped) or issubclass(own, NoFamilyModel):
        own = FAMILIES.get(host_of(own))
    settings = None if own is None else _settings(model, own, flags, swapped, whole)
    if settings is None:
        _become(model, without_family(host_of(type(model))), _earlier(model) | set(swapped))
    else:
        _become(model, own, None)
        for name, value in settings.items():
            setattr(model.config, name, value)
        model.config.validate_norm_flags()
        model._complete()
    return Identity(model, before[0], before[1], model.config, before[2])


def _earlier(model: Any) -> set[str]:
    """The paths of the norms that were swapped before, as the config says."""
    config = model.config
    if isinstance(config, NormFlags):
        return {path for path, _ in chosen_norms(model, config.norm_scope, config.norm_exclude or ())}
    return set(config.norm_replacements) if isinstance(config, NoFamily) else set()


def _settings(model: Any, own: Any, flags: dict[str, Any], swapped: list[str], whole: bool) -> dict[str, Any] | None:
    """The flags of a config that builds the norms which stand in ``model`` now; None where no config does."""
    config = model.config
    norms = {path: modules[0] for path, modules in iter_norms(model)}
    if not _earlier(model) <= set(swapped):
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


def _become(model: Any, cls: Any, swapped: Collection[str] | None) -> None:
    """Give ``model`` another class, and a config of its own of that class's; every module that read the old reads it.

    A config of no family lists the norms at ``swapped``; None: all that it can name. Where the weights once
    came from is forgotten: whoever looks there for this model would find another.
    """
    old = model.config
    memo: dict[int, Any] = {}
    new = copy.deepcopy(old, memo)
    for name in (*_FLAGS, "norm_replacements", "auto_map", "model_type"):
        new.__dict__.pop(name, None)
    if issubclass(cls, NoFamilyModel):
        new.__class__ = without_family(host_of(type(old)))
        new.norm_replacements = describe_norms(model, swapped)
        new.norm_embedding_scale = has_scaled_embedding(model)
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
