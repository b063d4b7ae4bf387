# Copyright 2026 The ibnorm_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The norm flags, once, and the configs of the model types that carry them."""

import difflib
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config, LlamaConfig, ResNetConfig, ViTConfig

from .compression import canonical_name
from .create import check_norm_flags
from .peft_targets import share_peft_targets


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
    """

    norm_type: str = "ibnorm-l"
    norm_lambda: int | float | list[int | float] | None = None
    norm_order: str = "compress-first"
    norm_affine: bool = True
    norm_bias: bool = True

    norm_area: ClassVar[str] = "token"  # which elements share statistics: the host norm's

    def __post_init__(self, **kwargs: Any) -> None:
        known = [f.name for f in fields(NormFlags)]
        for key in kwargs:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
            if nearest or (key.startswith("norm_") and not key.startswith("norm_eps")):
                hint = f"; did you mean '{nearest[0]}'?" if nearest else f"; the norm flags are {', '.join(known)}."
                raise ValueError(f"{type(self).__name__} has no field '{key}'{hint}")
        self.norm_type = canonical_name(self.norm_type)
        self.norm_order = canonical_name(self.norm_order)
        self.validate_norm_flags()
        super().__post_init__(**kwargs)  # type: ignore[misc]

    def validate_norm_flags(self) -> None:
        """Run at construction, and by transformers before saving; ValueError for a flag outside its domain."""
        lambdas = self.norm_lambda if isinstance(self.norm_lambda, list) else [self.norm_lambda]
        for norm_lambda in lambdas:
            check_norm_flags(self.norm_type, norm_lambda, self.norm_order, self.norm_area)

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
