# SPDX-License-Identifier: Apache-2.0
"""IBNorm and its classical baselines over the features of a token, each with its entry in the registry."""

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .batch_functional import at_least_float32
from .channel_norms import ChannelFirst
from .compression import get_compression
from .functional import _reference, apply_ib_norm, check_lambda, check_order
from .specs import NormSpec, register_norm


class TokenNorm(nn.Module):
    """Base of our norms over the last dimension: ``weight`` (ones) and ``bias`` (zeros), each (width,) or None.

    A norm implements ``normalize``, (..., width) to (..., width) with its affine; one with parameters of its own
    registers them after this constructor and sets their start values in ``reset_parameters``, which also fills what a
    checkpoint lacks. Such functions come from ``transformers.initialization``: they leave what was loaded alone.
    """

    gain_offset: ClassVar[float] = 0.0  # the gain of a feature is this plus its weight
    output_scale: float = 1.0  # a constant behind everything, by ``norm_depth_scale``

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        *,
        norm_affine: bool = True,
        norm_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        for name, start, wanted in (
            ("weight", 1.0 - self.gain_offset, norm_affine),
            ("bias", 0.0, norm_affine and norm_bias),
        ):
            value = torch.full((width,), start, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))

    def reset_parameters(self) -> None:
        """Give every parameter its start value."""
        if self.weight is not None:
            init.constant_(self.weight, 1.0 - self.gain_offset)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.normalize(x)
        return y if self.output_scale == 1.0 else y * self.output_scale

    def normalize(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _affine(self, y: Tensor, like: Tensor) -> Tensor:
        """``weight y + bias`` in y's dtype or above, returned in like's."""
        if self.weight is not None:
            y = y * self.weight
        return (y if self.bias is None else y + self.bias).to(like.dtype)

    def extra_repr(self) -> str:
        affine = "weight+bias" if self.bias is not None else "weight" if self.weight is not None else "none"
        scale = "" if self.output_scale == 1.0 else f", output_scale={self.output_scale:.4g}"
        return f"{self.width}, eps={self.eps}, affine={affine}{scale}"


class Compressing(nn.Module):
    """What IBNorm is over every area: a compression, and its lambda, fixed or learned."""

    log_lambda: nn.Parameter | None

    def _set_compression(
        self, norm_type: str, norm_lambda: float | None, learned: bool, device: Any = None, dtype: Any = None
    ) -> None:
        self.compression = get_compression(norm_type)
        lam = self.compression.default_lambda if norm_lambda is None else check_lambda(norm_lambda)
        start = torch.full((1,), math.log(lam), device=device, dtype=dtype) if learned else None
        self.register_parameter("log_lambda", None if start is None else nn.Parameter(start))
        self._norm_lambda = lam

    @property
    def norm_type(self) -> str:
        return self.compression.name

    @property
    def norm_lambda(self) -> float:
        """Lambda by now; ValueError where a number outside its domain is set."""
        if self.log_lambda is None or self.log_lambda.is_meta:
            return self._norm_lambda
        return math.exp(self.log_lambda.item())

    @norm_lambda.setter
    def norm_lambda(self, value: float) -> None:
        self._norm_lambda = check_lambda(value)
        if self.log_lambda is not None:
            with torch.no_grad():
                self.log_lambda.fill_(math.log(self._norm_lambda))

    def lambda_(self, like: Tensor) -> Tensor:
        """A learned lambda, (1,), in like's dtype but float32 at least."""
        assert self.log_lambda is not None
        return self.log_lambda.to(at_least_float32(like).dtype).exp()

    def _reset_lambda(self) -> None:
        if self.log_lambda is not None:
            init.constant_(self.log_lambda, math.log(self._norm_lambda))

    def _lambda_repr(self) -> str:
        return (
            f"lambda={self._norm_lambda:g}" if self.log_lambda is None else f"lambda learned from {self._norm_lambda:g}"
        )


class IBNorm(Compressing, TokenNorm):
    """Information-Bottleneck inspired normalization of each token's features (arXiv:2510.25262; see ``ib_norm``).

    Args:
        width: size of the last dimension of the input, (..., width) of any floating dtype.
        eps: added to the variance.
        norm_type: ``ibnorm-l``, ``ibnorm-t``, ``ibnorm-s``, ``ibnorm-sqrt`` or a registered compression.
        norm_lambda: where compression sets in, in units of the input; None takes the variant's default.
            It may be changed between steps; an attribute outside its domain is refused as the argument is.
        norm_lambda_learned: learn it, as the exponential of a parameter ``log_lambda`` that starts at its logarithm
            (ours: the ablation; the plain torch path computes it).
        norm_order: ``compress-first`` (IBNorm) or ``standardize-first`` (the ablation).
        norm_affine, norm_bias: learn a weight, and a bias beside it.

    Raises:
        ValueError: a name is unknown, or norm_lambda is not a finite number above 0.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        *,
        norm_type: str = "ibnorm-l",
        norm_lambda: float | None = None,
        norm_order: str = "compress-first",
        norm_affine: bool = True,
        norm_bias: bool = True,
        norm_lambda_learned: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(width, eps, norm_affine=norm_affine, norm_bias=norm_bias, device=device, dtype=dtype)
        self._set_compression(norm_type, norm_lambda, norm_lambda_learned, device, dtype)
        self.norm_order = check_order(norm_order)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_lambda()

    def normalize(self, x: Tensor) -> Tensor:
        if self.log_lambda is None:
            lam = self._norm_lambda
            return apply_ib_norm(x, self.weight, self.bias, self.compression, lam, self.eps, self.norm_order)
        lam = cast(float, self.lambda_(x))  # to the reference, a tensor of one number is a number
        z = _reference(at_least_float32(x), None, None, self.compression, lam, self.eps, self.norm_order)
        return self._affine(z, x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.norm_type}, {self._lambda_repr()}, {self.norm_order}"


class IBNorm2d(ChannelFirst, IBNorm):
    """``IBNorm`` over the channels of each pixel."""


# Stands for every compression: `get_spec` fills in name, formula and confidence of the one that is asked for.
register_norm(
    NormSpec(
        name="ibnorm-l",
        classes={"token": IBNorm, "channel": IBNorm2d},
        meaning="compresses toward the token's mean, then centres and standardizes",
        formula="",
        status="reconstructed",
        start="w 1, b 0",
        family="ibnorm",
        options=("norm_lambda", "norm_order", "norm_lambda_learned"),
        citation="""@article{zou2025ibnorm,
  title   = {IBNorm: Information-Bottleneck Inspired Normalization for Representation Learning},
  author  = {X. Zou and P. Zhou},
  journal = {arXiv preprint arXiv:2510.25262},
  year    = {2025}
}""",
    )
)


class ScaledLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` times a constant, where ``norm_depth_scale`` asks for one."""

    output_scale: float = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.output_scale


class LayerNorm2d(ChannelFirst, nn.LayerNorm):
    """``nn.LayerNorm`` over the channels of each pixel."""


register_norm(
    NormSpec(
        name="layernorm",
        classes={"token": nn.LayerNorm, "channel": LayerNorm2d, "batch": LayerNorm2d},
        meaning="centres and standardizes each token",
        formula="w (x - mean(x)) / sqrt(var(x) + eps) + b",
        status="as published",
        start="w 1, b 0",
        standardizes=True,
        citation="""@article{ba2016layer,
  title   = {Layer Normalization},
  author  = {Jimmy Lei Ba and Jamie Ryan Kiros and Geoffrey E. Hinton},
  journal = {arXiv preprint arXiv:1607.06450},
  year    = {2016}
}""",
    )
)


class RMSNorm(TokenNorm):
    """``weight * x / rms(x)`` in float32, rounded to x's dtype before the weight as LLaMA's own (bit-equal to it)."""

    def normalize(self, x: Tensor) -> Tensor:
        x32 = at_least_float32(x)
        h = (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        if self.weight is not None:
            h = self.weight * h
        return h if self.bias is None else h + self.bias


class RMSNorm2d(ChannelFirst, RMSNorm):
    """``RMSNorm`` over the channels of each pixel."""


register_norm(
    NormSpec(
        name="rmsnorm",
        classes={"token": RMSNorm, "channel": RMSNorm2d, "batch": RMSNorm2d},
        meaning="scales each token to unit RMS without centring",
        formula="w x / sqrt(mean(x^2) + eps)",
        status="as published",
        start="w 1",
        standardizes=True,
        citation="""@inproceedings{zhang2019root,
  title     = {Root Mean Square Layer Normalization},
  author    = {Biao Zhang and Rico Sennrich},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2019}
}""",
    )
)


class NormalNorm(TokenNorm):
    """Normality normalization of each token (Eftekhari and Papyan, ICML 2025, arXiv:2505.00685).

    Standardize, then a Yeo-Johnson power transform whose exponent is one Newton step on its likelihood at 1, then
    (in training, with ``noise``) Gaussian noise scaled by the mean absolute deviation, then affine. The noise comes
    from torch's global generator of x's device, which a resumable run saves.

    Args:
        noise: off is the named variant ``normalnorm-noiseless``.
        noise_factor: xi, 1.0 for the features of a token.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        *,
        noise: bool = True,
        noise_factor: float = 1.0,
        norm_affine: bool = True,
        norm_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(width, eps, norm_affine=norm_affine, norm_bias=norm_bias, device=device, dtype=dtype)
        self.noise = noise
        self.noise_factor = noise_factor

    def normalize(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return self._affine(x, x)  # there is nothing to take a variance of
        x32 = at_least_float32(x)
        variance, mean = torch.var_mean(x32, -1, correction=0, keepdim=True)
        h = (x32 - mean) * torch.rsqrt(variance + self.eps)
        y = yeo_johnson(h, newton_exponent(h, (-1,), self.eps))
        if self.noise and self.training:
            scale = (y - y.mean(-1, keepdim=True)).abs().mean(-1, keepdim=True).detach()
            y = y + torch.randn_like(y) * (self.noise_factor * scale)
        return self._affine(y, x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, noise={self.noise_factor if self.noise else 0:g}"


class NormalNorm2d(ChannelFirst, NormalNorm):
    """``NormalNorm`` over the channels of each pixel."""


for _name, _noise in (("normalnorm", True), ("normalnorm-noiseless", False)):
    register_norm(
        NormSpec(
            name=_name,
            classes={"token": NormalNorm, "channel": NormalNorm2d},
            meaning="standardizes each token, then a power transform toward normality",
            formula="w psi(h) + b, h standardized, psi Yeo-Johnson" + (", noise in training" if _noise else ""),
            status="as published",
            start="w 1, b 0",
            family="normalnorm",
            arguments={"noise": _noise},
            citation="""@article{eftekhari2025normality,
  title   = {On the Importance of Gaussianizing Representations},
  author  = {Daniel Eftekhari and Vardan Papyan},
  journal = {arXiv preprint arXiv:2505.00685},
  year    = {2025}
}""",
        )
    )


def newton_exponent(h: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """One Newton step from 1 on the Yeo-Johnson likelihood of standardized h over ``dims`` (kept as size 1)."""

    def mean(t: Tensor) -> Tensor:
        return t.mean(dims, keepdim=True)

    a, sign = h.abs(), torch.sign(h)
    signed_log = torch.where(h >= 0, torch.log1p(h.clamp(min=0)), -torch.log1p((-h).clamp(min=0)))
    log = signed_log.abs()
    first = (1 + a) * log - a  # first and second derivative of the transform with respect to its exponent, at 1
    second = sign * ((1 + a) * log * log - 2 * first)
    slope = mean(h * first) - mean(signed_log)
    curvature = torch.var(first, dims, correction=0, keepdim=True) + mean(h * second) - 2 * mean(h * first).square()
    return 1 - slope / (curvature + eps**0.5)


def yeo_johnson(h: Tensor, exponent: Tensor) -> Tensor:
    """The Yeo-Johnson power transform, elementwise; its derivative is right at h = 0 and at exponents 0 and 2."""
    positive = _power(torch.log1p(h.clamp(min=0)), exponent)
    negative = _power(torch.log1p((-h).clamp(min=0)), 2 - exponent)
    return torch.where(h >= 0, positive, -negative)


def _power(log: Tensor, exponent: Tensor) -> Tensor:
    # expm1(m l) / m, which tends to l as m tends to 0.
    tiny = exponent.abs() < 1e-4
    safe = torch.where(tiny, torch.ones_like(exponent), exponent)
    return torch.where(tiny, log * (1 + exponent * log / 2), torch.expm1(safe * log) / safe)
