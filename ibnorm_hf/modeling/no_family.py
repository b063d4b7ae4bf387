# SPDX-License-Identifier: Apache-2.0
"""Models with other norms than their host's that no family of ours can name: what they are called, saved and loaded as.

Their config lists what stands at each path, under a model type that nothing knows: every Auto class and the host's own
class refuse it, with or without this package, rather than bring the old norms back. ``load_swapped`` reads it.
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_ibnorm import NormFlags
from .create import scaled_by, spec_of
from .norms import Compressing
from .peft_targets import share_peft_targets
from .recognize import family_of, iter_norms
from .scaled_embedding import ScaledEmbedding, scale_embeddings
from .swap import swap_at

PREFIX = "ibnorm_swapped_"  # of the model type; the host's follows
DOOR = "load it by ibnorm_hf.load_swapped"
_DTYPE = "norm_host_dtype"  # a key of config.json
PLACES = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")  # options that say where


class Swapped:
    """Base of every model class that says that its norms were swapped."""


class NoFamily:
    """Put before a host's config class: its norms were swapped, and no registered config can say so."""

    norm_host: str  # the host's model type
    norm_replacements: Mapping[str, Mapping[str, Any]]  # path -> what was put there
    norm_embedding_scale: bool

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        dtype = config_dict.get(_DTYPE)
        kept = {key: value for key, value in config_dict.items() if key not in ("dtype", _DTYPE)}
        return super().from_dict(kept | ({} if dtype is None else {"dtype": dtype}), **kwargs)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        share_peft_targets(self.model_type, self.norm_host)  # type: ignore[attr-defined]
        return super().to_dict()  # type: ignore[misc, no-any-return]

    def to_json_file(self, json_file_path: Any, *args: Any, **kwargs: Any) -> None:
        """As any config's, with a dtype that torch has not: the host's own class would only warn of the model type."""
        kept = self.dtype  # type: ignore[attr-defined]
        self.__dict__["dtype"] = f"the norms of this {self.norm_host} were swapped; {DOOR}"
        self.__dict__[_DTYPE] = None if kept is None else str(kept).removeprefix("torch.")
        try:
            super().to_json_file(json_file_path, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.__dict__["dtype"] = kept
            del self.__dict__[_DTYPE]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (host_of(type(self)),), self.__dict__.copy()


class NoFamilyModel(Swapped):
    """Put before a host's model class, so that its name is not the host's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        put_norms(self, self.config.norm_replacements)  # type: ignore[arg-type,attr-defined]
        if self.config.norm_embedding_scale:  # type: ignore[attr-defined]
            scale_embeddings(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (host_of(type(self)),), self.__dict__.copy()


def load_swapped(source: Any, *, model_class: type[PreTrainedModel] | None = None, **options: Any) -> Any:
    """A model that was saved after ``replace_norms``, and that no Auto class loads: its host has no family of ours.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a name on the Hub.
        model_class: the host's class; None takes the one of transformers that the config names.
        options: of ``from_pretrained``.

    Returns:
        the host's class, under the name that ``replace_norms`` gave it, in eval mode, with the norms that were saved.

    Raises:
        ValueError: the model is none of these, its class is not known, or its weights are not exactly the model's.
        OSError: nothing is there.
    """
    places = {name: options[name] for name in PLACES if name in options}
    stored, _ = PreTrainedConfig.get_config_dict(source, **places)
    kind = str(stored.get("model_type"))
    if not kind.startswith(PREFIX) or not isinstance(stored.get("norm_replacements"), Mapping):
        raise ValueError(f"{source} holds a {kind}, which is loaded by the Auto classes of transformers.")
    names = stored.get("architectures") or [""]
    host = model_class or getattr(transformers, names[0].removeprefix("IBNorm"), None)
    if not (isinstance(host, type) and issubclass(host, PreTrainedModel)):
        raise ValueError(
            f"{source} holds a {names[0] or kind}, whose host is no class of transformers; give it as model_class"
        )
    if host.config_class.model_type != kind.removeprefix(PREFIX):  # type: ignore[union-attr]
        raise ValueError(f"{source} holds a {kind}, which is no {host.__name__}")
    wants_info = options.pop("output_loading_info", False)
    options.pop("trust_remote_code", None)  # a class of transformers is at hand, whatever is allowed
    of_host: Any = without_family(host)  # type: ignore[arg-type]
    model, info = of_host.from_pretrained(source, output_loading_info=True, trust_remote_code=False, **options)
    for odd in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[odd]:
            raise ValueError(
                f"{source}: weights and config.json disagree ({odd.replace('_', ' ')}: {min(map(str, info[odd]))})"
            )
    return (model, info) if wants_info else model


def describe_norms(model: nn.Module, paths: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """What stands at some paths, or at every one that has a norm of the registry: the arguments of ``create_norm``."""
    return {
        path: _described(modules[0])
        for path, modules in iter_norms(model)
        if (spec_of(modules[0]) is not None if paths is None else path in paths)
    }


def _described(norm: Any) -> dict[str, Any]:
    spec = spec_of(norm)
    assert spec is not None
    out: dict[str, Any] = {"norm_type": spec.name}
    if isinstance(norm, Compressing):
        out["norm_lambda"] = norm._norm_lambda  # where a learned one started
        out["norm_order"] = getattr(norm, "norm_order", "compress-first")
        out["norm_lambda_learned"] = norm.log_lambda is not None
    out["norm_affine"] = norm.weight is not None
    out["norm_bias"] = getattr(norm, "bias", None) is not None
    scale = getattr(norm, "output_scale", 1.0)
    return out if scale == 1.0 else out | {"output_scale": scale}


_DEFAULTS = {"norm_lambda": None, "norm_order": "compress-first", "norm_lambda_learned": False}


def put_norms(model: nn.Module, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the norms in place that ``describe_norms`` saw. ValueError where the model has no norm of that path."""
    at = dict(iter_norms(model))
    for path, norm in described.items():
        family = family_of(at[path][0]) if path in at else None
        if family is None:
            raise ValueError(f"{type(model).__name__} has no norm '{path}' that another one could replace.")
        flags = {**_DEFAULTS, "norm_depth_scale": None, **norm}
        scale = flags.pop("output_scale", 1.0)
        for swapped in swap_at(model, [(path, at[path], family)], flags).replacements:
            if scale != 1.0:
                scaled_by(swapped.new, scale)


def has_scaled_embedding(model: nn.Module) -> bool:
    return any(isinstance(module, ScaledEmbedding) for module in model.modules())


def host_of(cls: type) -> Any:
    """The class of transformers that one of ours stands on; any other class itself."""
    for c in cls.__mro__:
        if issubclass(c, PreTrainedModel | PreTrainedConfig) and not issubclass(c, Swapped | NormFlags | NoFamily):
            return c
    raise TypeError(f"{cls.__name__} stands on no class of transformers")


@functools.cache
def without_family(host: Any) -> Any:
    """The class of a model, or of a config, that no family can name."""
    name = f"IBNorm{host.__name__}"
    if issubclass(host, PreTrainedModel):
        config = without_family(host_of(host.config_class))  # type: ignore[arg-type]
        return type(name, (NoFamilyModel, host), {"__module__": __name__, "config_class": config})
    kind = f"{PREFIX}{host.model_type}"
    return type(name, (NoFamily, host), {"__module__": __name__, "model_type": kind, "norm_host": host.model_type})


def _blank(host: Any) -> Any:
    cls = without_family(host)
    return cls.__new__(cls)
