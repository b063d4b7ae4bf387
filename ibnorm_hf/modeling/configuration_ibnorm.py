# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The norm flags, once, and the configs of the model types that carry them."""

import difflib
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config, LlamaConfig, ResNetConfig, ViTConfig

from .compression import canonical_name
from .create import check_norm_flags, get_spec
from .peft_targets import share_peft_targets
from .scope import check_scope

_FOR_VANILLA = "vanilla_host"  # a key of config.json


@dataclass(kw_only=True, repr=False)
class NormFlags:
    """What stands in place of the host's norms; its eps is the host's own field.

    Args:
        norm_type: one of ``list_norms()`` (ResNet: ``list_norms("batch")``), blind to case and to ``_`` against ``-``.
        norm_lambda: where compression sets in, in units of the activations: a number, one a norm in module order,
            or None for the variant's default. IBNorm only.
        norm_order: ``compress-first`` or ``standardize-first`` (the paper's ablation). IBNorm only.
        norm_affine: learn a weight (and, with norm_bias, a bias).
        norm_bias: False on LLaMA, so that parameters equal RMSNorm's; True elsewhere.
        norm_lambda_learned: learn lambda, one a norm, from the value it would else keep. IBNorm only.
        norm_depth_scale: ``sqrt`` divides the output of the norms in front of attention and MLP by the square root of
            their layer, counted from 1 (LayerNorm scaling, arXiv:2502.05795); any norm over the features of a token.
        norm_scope: which norms: ``all``, or one or several of ``final``, ``pre-attention`` and ``pre-mlp``; the others
            stay the host's.
        norm_exclude: norms that stay the host's: names, last parts of paths or patterns (``["q_norm", "layers.0.*"]``).
        norm_embedding_scale: multiply the token embeddings by a learned number that starts at the square root of the
            width. None: where the norm is published with it, which is LLaMA with ``dyt`` or ``derf``.
    """

    norm_type: str = "ibnorm-l"
    norm_lambda: int | float | list[int | float] | None = None
    norm_order: str = "compress-first"
    norm_affine: bool = True
    norm_bias: bool = True
    norm_lambda_learned: bool = False
    norm_depth_scale: str | None = None
    norm_scope: str | list[str] = "all"
    norm_exclude: list[str] | None = None
    norm_embedding_scale: bool | None = None

    norm_area: ClassVar[str] = "token"  # which elements share statistics: the host norm's
    host_gain_offset: ClassVar[float] = 0.0  # 1 where the host's norms write their gain as 1 + w

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop(_FOR_VANILLA, None)
        known = [f.name for f in fields(NormFlags)]
        for key in kwargs:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
            if nearest or (key.startswith("norm_") and not key.startswith("norm_eps")):
                hint = f"; did you mean '{nearest[0]}'?" if nearest else f"; the norm flags are {', '.join(known)}."
                raise ValueError(f"{type(self).__name__} has no field '{key}'{hint}")
        self.norm_type = canonical_name(self.norm_type)
        self.norm_order = canonical_name(self.norm_order)
        self.norm_scope = check_scope(self.norm_scope)
        self.validate_norm_flags()
        if self.norm_embedding_scale is None:
            host = self.model_type.removeprefix("ibnorm_")  # type: ignore[attr-defined]
            self.norm_embedding_scale = host in get_spec(self.norm_type).embedding_scale
        super().__post_init__(**kwargs)  # type: ignore[misc]

    def validate_norm_flags(self) -> None:
        """Run at construction, and by transformers before saving; ValueError for a flag outside its domain."""
        lambdas = self.norm_lambda if isinstance(self.norm_lambda, list) else [self.norm_lambda]
        for norm_lambda in lambdas:
            check_norm_flags(
                self.norm_type,
                norm_lambda,
                self.norm_order,
                self.norm_area,
                self.norm_lambda_learned,
                self.norm_depth_scale,
            )
        if check_scope(self.norm_scope) != "all" and self.norm_area == "batch":
            raise ValueError(
                f"norm_scope={self.norm_scope} is for a transformer, whose norms stand in front of a part."
            )
        if self.norm_embedding_scale and not hasattr(type(self), "vocab_size"):
            raise ValueError(f"norm_embedding_scale is for token embeddings, which {type(self).__name__} has not.")

    def norm_options(self) -> dict[str, Any]:
        """What ``replace_norms`` is told beside the norm_type."""
        kept = ("norm_type", "norm_exclude", "norm_embedding_scale")
        options = {f.name: getattr(self, f.name) for f in fields(NormFlags) if f.name not in kept}
        return options | {"exclude": self.norm_exclude or ()}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As any config's. Saved before embeddings could be scaled, ``dyt`` was what ``dyt-plain`` is now."""
        saved = "transformers_version" in config_dict and "norm_embedding_scale" not in config_dict
        if saved and config_dict.get("norm_type") == "dyt":
            config_dict = {**config_dict, "norm_type": "dyt-plain"}
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def to_json_file(self, json_file_path: Any, *args: Any, **kwargs: Any) -> None:
        """As any config's, with an entry that only the host's own config class reads, and refuses.

        That class would warn of another model type, and load the weights into a model with its own norms. An entry of
        its own model type is what it reads instead of the rest; no torch dtype has the name that stands there.
        """
        host = type(self).model_type.removeprefix("ibnorm_")  # type: ignore[attr-defined]
        refusal = (
            f"this model has other norms than {host}: import ibnorm_hf, and load it by an Auto class or a class of ours"
        )
        self.__dict__[_FOR_VANILLA] = {"model_type": host, "dtype": refusal}
        try:
            super().to_json_file(json_file_path, *args, **kwargs)  # type: ignore[misc]
        finally:
            del self.__dict__[_FOR_VANILLA]

    def to_dict(self) -> dict[str, Any]:
        """As any config's. PEFT calls it to learn the model type, just before it looks up the modules to adapt."""
        share_peft_targets(self.model_type)  # type: ignore[attr-defined]
        return super().to_dict()  # type: ignore[misc, no-any-return]


@strict
class IBNormLlamaConfig(NormFlags, LlamaConfig):
    """``LlamaConfig`` with the norm flags of ``NormFlags``; eps is ``rms_norm_eps``."""

    model_type = "ibnorm_llama"
    norm_bias: bool = False


@strict
class IBNormGPT2Config(NormFlags, GPT2Config):
    """``GPT2Config`` with the norm flags of ``NormFlags``; eps is ``layer_norm_epsilon``."""

    model_type = "ibnorm_gpt2"


@strict
class IBNormViTConfig(NormFlags, ViTConfig):
    """``ViTConfig`` with the norm flags of ``NormFlags``; eps is ``layer_norm_eps``."""

    model_type = "ibnorm_vit"


@strict
class IBNormResNetConfig(NormFlags, ResNetConfig):
    """``ResNetConfig`` with the norm flags of ``NormFlags``, over the batch area of its BatchNorms, eps 1e-5.

    ``layernorm``, ``rmsnorm`` and ``dyt`` act on the channels of each pixel; ``norm_order`` has no meaning here.
    """

    model_type = "ibnorm_resnet"
    norm_area = "batch"


__all__ = ["IBNormGPT2Config", "IBNormLlamaConfig", "IBNormResNetConfig", "IBNormViTConfig"]
