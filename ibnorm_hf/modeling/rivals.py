# SPDX-License-Identifier: Apache-2.0
"""Other people's replacements for a norm, each written from its formula and entered in the registry right below it."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers import initialization as init

from .batch_functional import at_least_float32
from .channel_norms import ChannelFirst
from .norms import TokenNorm
from .sites import Site
from .specs import NormSpec, register_norm

# Width of a language model -> DyT's first alpha before attention, and elsewhere (arXiv:2503.10622; 4096, 5120 and 8192
# are LLaMA 7B, 13B, and 34B and above). A width in between takes the next larger entry.
_ALPHA = {1024: (1.0, 1.0), 2048: (1.0, 0.5), 4096: (0.8, 0.2), 5120: (0.6, 0.15), 8192: (0.2, 0.05)}


def alpha_at(site: Site) -> Mapping[str, Any]:
    """DyT's first alpha where a norm stands: by width and place in a language model, 0.5 anywhere else.

    Language models are those that transformers can build for causal language modeling.
    """
    if site.host not in CONFIG_MAPPING or CONFIG_MAPPING[site.host] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return {"alpha": 0.5}
    entry = next((width for width in _ALPHA if site.width <= width), max(_ALPHA))
    return {"alpha": _ALPHA[entry][site.kind != "attention"]}


class DynamicTanh(TokenNorm):
    """DyT: ``weight * tanh(alpha x) + bias`` with a learned scalar alpha, no statistics (Zhu et al., arXiv:2503.10622).

    As published, ``norm_type: dyt`` takes alpha by site and width in a language model (``alpha_at``), and LLaMA's
    embeddings get a learned factor that starts at the square root of the width (``ScaledEmbedding``). ``dyt-plain`` is
    the same function at alpha 0.5 everywhere, the host otherwise as it is: one recipe shared by all norms of a study.

    Args:
        alpha: initial value of alpha. ``eps`` has no use here.
    """

    def __init__(self, width: int, eps: float = 1e-5, *, alpha: float = 0.5, published: bool = True, **options: Any):
        super().__init__(width, eps, **options)
        self.initial_alpha = alpha
        self.published = published
        self.alpha = _parameter(options, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init.constant_(self.alpha, self.initial_alpha)

    def normalize(self, x: Tensor) -> Tensor:
        return self._affine(torch.tanh(self.alpha * x), x)


class DynamicTanh2d(ChannelFirst, DynamicTanh):
    """``DynamicTanh`` with a weight and bias a channel."""


_DYT = """@article{zhu2025transformers,
  title   = {Transformers without Normalization},
  author  = {Jiachen Zhu and Xinlei Chen and Kaiming He and Yann LeCun and Zhuang Liu},
  journal = {arXiv preprint arXiv:2503.10622},
  year    = {2025}
}"""
register_norm(
    NormSpec(
        name="dyt",
        classes={"token": DynamicTanh, "channel": DynamicTanh2d, "batch": DynamicTanh2d},
        meaning="squashes each element on its own, without statistics",
        formula="w tanh(a x) + b, a scalar a",
        status="as published",
        start="w 1, b 0, a by site and width in a language model, else 0.5; LLaMA's embeddings times a learned sqrt(d)",
        citation=_DYT,
        arguments={"published": True},
        start_at=alpha_at,
        embedding_scale=("llama",),
    )
)
register_norm(
    NormSpec(
        name="dyt-plain",
        classes={"token": DynamicTanh, "channel": DynamicTanh2d, "batch": DynamicTanh2d},
        meaning="squashes each element on its own, without statistics",
        formula="w tanh(a x) + b, a scalar a",
        status="sourced",
        start="w 1, b 0, a 0.5 everywhere: the recipe that the other norms of a study share",
        citation=_DYT,
        family="dyt",
        arguments={"published": False},
    )
)


class DynamicErf(TokenNorm):
    """Derf: ``weight * erf(alpha x + shift) + bias``, learned scalars alpha and shift (Chen et al., arXiv:2512.10938).

    Published for vision (alpha 0.5) and GPT-2 (alpha 1 at every site); in LLaMA it takes what DyT takes there.

    Args:
        alpha: initial value of alpha; shift starts at 0. ``eps`` has no use here.
    """

    def __init__(self, width: int, eps: float = 1e-5, *, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(width, eps, **options)
        self.initial_alpha = alpha
        self.alpha, self.shift = _parameter(options, 1), _parameter(options, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init.constant_(self.alpha, self.initial_alpha)
        init.zeros_(self.shift)

    def normalize(self, x: Tensor) -> Tensor:
        return self._affine(torch.erf(self.alpha * at_least_float32(x) + self.shift), x)


class DynamicErf2d(ChannelFirst, DynamicErf):
    """``DynamicErf`` with a weight and bias a channel."""


register_norm(
    NormSpec(
        name="derf",
        classes={"token": DynamicErf, "channel": DynamicErf2d, "batch": DynamicErf2d},
        meaning="squashes each element on its own by the error function, without statistics",
        formula="w erf(a x + s) + b, scalars a, s",
        status="as published",
        start="w 1, b 0, s 0, a 1 in GPT-2, else 0.5; in LLaMA as dyt",
        citation="""@article{chen2025stronger,
  title   = {Stronger Normalization-Free Transformers},
  author  = {Mingzhi Chen and Taiming Lu and Jiachen Zhu and Mingjie Sun and Zhuang Liu},
  journal = {arXiv preprint arXiv:2512.10938},
  year    = {2025}
}""",
        start_at=lambda site: {"alpha": 1.0} if site.host == "gpt2" else alpha_at(site),
        embedding_scale=("llama",),
    )
)


class BHyT(TokenNorm):
    """BHyT: ``weight * tanh(k lam x / rms(x))``, k = 0.1, a learned scalar lam (arXiv:2601.09719, ICML 2026).

    With lam at its start of 2 it is, up to centring and a factor 0.2, ``ibnorm-t`` with ``standardize-first`` at
    lambda 5; IBNorm-T as published is the opposite order. Its authors keep the model's last norm an RMSNorm
    (``norm_scope``), start lam at 2 or 3, and estimate the second statistic of a layer, which is not done here.
    """

    k = 0.1

    def __init__(self, width: int, eps: float = 1e-5, *, lam: float = 2.0, **options: Any) -> None:
        super().__init__(width, eps, **options)
        self.initial_lam = lam
        self.lam = _parameter(options, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init.constant_(self.lam, self.initial_lam)

    def normalize(self, x: Tensor) -> Tensor:
        return self._affine(torch.tanh(self.k * self.lam * scaled_to_unit_rms(x, self.eps)), x)


class BHyT2d(ChannelFirst, BHyT):
    """``BHyT`` over the channels of each pixel."""


register_norm(
    NormSpec(
        name="bhyt",
        classes={"token": BHyT, "channel": BHyT2d, "batch": BHyT2d},
        meaning="scales each token to unit RMS, then squashes it",
        formula="w tanh(0.1 l x / rms(x)), a scalar l",
        status="sourced",
        start="w 1, l 2",
        citation="""@inproceedings{byun2026bounded,
  title     = {Bounded Hyperbolic Tangent: A Stable and Efficient Alternative to Pre-Layer Normalization in Large
               Language Models},
  author    = {Hoyoon Byun and Youngjun Choi and Taero Kim and Sungrae Park and Kyungwoo Song},
  booktitle = {International Conference on Machine Learning},
  note      = {arXiv:2601.09719},
  year      = {2026}
}""",
    )
)


class RMSNorm1p(TokenNorm):
    """``(1 + weight) * x / rms(x)`` in float32 throughout, as in Gemma and Qwen3-Next (bit-equal to Gemma's).

    A weight starts at 0. Qwen3-Next lets it decay, toward a gain of 1, and so do our recipes; RMSNorm's never decays.
    """

    gain_offset = 1.0

    def normalize(self, x: Tensor) -> Tensor:
        h = self._gained(x)
        return (h if self.bias is None else h + self.bias).to(x.dtype)

    def _gained(self, x: Tensor) -> Tensor:
        h = scaled_to_unit_rms(x, self.eps)
        return h if self.weight is None else h * (1.0 + self.weight.to(h.dtype))


class RMSNorm1p2d(ChannelFirst, RMSNorm1p):
    """``RMSNorm1p`` over the channels of each pixel."""


register_norm(
    NormSpec(
        name="rmsnorm-1p",
        classes={"token": RMSNorm1p, "channel": RMSNorm1p2d, "batch": RMSNorm1p2d},
        meaning="scales each token to unit RMS without centring, its gain written as 1 + w",
        formula="(1 + w) x / sqrt(mean(x^2) + eps)",
        status="as published",
        start="w 0",
        standardizes=True,
        citation="""@article{gemma2024,
  title   = {Gemma: Open Models Based on Gemini Research and Technology},
  author  = {Gemma Team},
  journal = {arXiv preprint arXiv:2403.08295},
  year    = {2024}
}""",
        decayed=("weight",),
    )
)


class GatedNorm(RMSNorm1p):
    """``2 h sigmoid(up silu(down h))`` with ``h = (1 + weight) x / rms(x)`` (arXiv:2601.22966).

    The formula is reconstructed from how others use it. The gate has rank 16; ``up`` starts at 0, so that the gate is
    1 and the norm RMSNorm; ``down`` starts as noise of std 0.02 (ours). Both maps decay, as linear maps do.
    """

    rank = 16

    def __init__(self, width: int, eps: float = 1e-5, **options: Any) -> None:
        super().__init__(width, eps, **options)
        self.down, self.up = _parameter(options, self.rank, width), _parameter(options, width, self.rank)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init.normal_(self.down, std=0.02)
        init.zeros_(self.up)

    def normalize(self, x: Tensor) -> Tensor:
        h = self._gained(x)
        gate = torch.sigmoid(F.linear(F.silu(F.linear(h, self.down.to(h.dtype))), self.up.to(h.dtype)))
        y = 2 * h * gate
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class GatedNorm2d(ChannelFirst, GatedNorm):
    """``GatedNorm`` over the channels of each pixel."""


register_norm(
    NormSpec(
        name="gatednorm",
        classes={"token": GatedNorm, "channel": GatedNorm2d, "batch": GatedNorm2d},
        meaning="scales each token to unit RMS and gates each feature by a map of rank 16",
        formula="2 h sigmoid(W2 silu(W1 h)), h = (1 + w) x / rms(x)",
        status="reconstructed",
        start="w 0, W2 0 (the gate is 1), W1 of std 0.02",
        confidence="low confidence: read from a public port",
        citation="""@article{qiu2026unified,
  title   = {A Unified View of Attention and Residual Sinks: Outlier-Driven Rescaling is Essential for Transformer
             Training},
  author  = {Zihan Qiu and Zeyu Huang and Kaiyue Wen and Peng Jin and Bo Zheng and others},
  journal = {arXiv preprint arXiv:2601.22966},
  year    = {2026}
}""",
        decayed=("weight", "down", "up"),
    )
)


class SeeDNorm(TokenNorm):
    """SeeDNorm: ``(weight + alpha tanh(x . beta)) x / rms(x)``, vectors all three (arXiv:2510.22777, ICLR 2026).

    At its start, beta 0, it is RMSNorm; alpha and beta decay, as published, and the gain does not. The variant with
    several heads is not here.
    """

    def __init__(self, width: int, eps: float = 1e-5, **options: Any) -> None:
        super().__init__(width, eps, **options)
        self.alpha, self.beta = _parameter(options, width), _parameter(options, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init.ones_(self.alpha)
        init.zeros_(self.beta)

    def normalize(self, x: Tensor) -> Tensor:
        x32 = at_least_float32(x)
        gain = self.alpha * torch.tanh((x32 * self.beta).sum(-1, keepdim=True))
        gain = gain + (1.0 if self.weight is None else self.weight)
        y = gain * scaled_to_unit_rms(x, self.eps)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class SeeDNorm2d(ChannelFirst, SeeDNorm):
    """``SeeDNorm`` over the channels of each pixel."""


register_norm(
    NormSpec(
        name="seednorm",
        classes={"token": SeeDNorm, "channel": SeeDNorm2d, "batch": SeeDNorm2d},
        meaning="scales each token to unit RMS, by a gain that depends on the token",
        formula="(w + a tanh(x . c)) x / rms(x), vectors w, a, c",
        status="as published",
        start="w 1, a 1, c 0, which is RMSNorm",
        citation="""@inproceedings{cai2026seednorm,
  title     = {SeeDNorm: Self-Rescaled Dynamic Normalization},
  author    = {Wenrui Cai and Defa Zhu and Qingjie Liu and Qiyang Min},
  booktitle = {International Conference on Learning Representations},
  note      = {arXiv:2510.22777},
  year      = {2026}
}""",
        decayed=("alpha", "beta"),
    )
)


def _parameter(options: Mapping[str, Any], *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=options.get("device"), dtype=options.get("dtype")))


def scaled_to_unit_rms(x: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` of each token, in float32 at least."""
    x32 = at_least_float32(x)
    return x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
