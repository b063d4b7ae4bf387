# SPDX-License-Identifier: Apache-2.0
"""The norm modules, and ``create_norm``: one name, one width, one module."""

from typing import Any

import torch
from torch import Tensor, nn

from .compression import canonical_name, get_compression, list_compressions, unknown_name
from .functional import NORM_ORDERS, apply_ib_norm, check_lambda, check_order


class TokenNorm(nn.Module):
    """Base of our norms over the last dimension: ``weight`` (ones) and ``bias`` (zeros), each (width,) or None."""

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
        for name, fill, wanted in (
            ("weight", torch.ones, norm_affine),
            ("bias", torch.zeros, norm_affine and norm_bias),
        ):
            self.register_parameter(name, nn.Parameter(fill(width, device=device, dtype=dtype)) if wanted else None)

    def extra_repr(self) -> str:
        affine = "weight+bias" if self.bias is not None else "weight" if self.weight is not None else "none"
        return f"{self.width}, eps={self.eps}, affine={affine}"


class IBNorm(TokenNorm):
    """Information-Bottleneck inspired normalization of each token's features (arXiv:2510.25262; see ``ib_norm``).

    Args:
        width: size of the last dimension of the input, (..., width) of any floating dtype.
        eps: added to the variance.
        norm_type: ``ibnorm-l``, ``ibnorm-t``, ``ibnorm-s``, ``ibnorm-sqrt`` or a registered compression.
        norm_lambda: where compression sets in, in units of the input; None takes the variant's default.
            It is a plain attribute, so it may be changed between steps.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(width, eps, norm_affine=norm_affine, norm_bias=norm_bias, device=device, dtype=dtype)
        self.compression = get_compression(norm_type)
        self.norm_lambda = self.compression.default_lambda if norm_lambda is None else check_lambda(norm_lambda)
        self.norm_order = check_order(norm_order)

    @property
    def norm_type(self) -> str:
        return self.compression.name

    def forward(self, x: Tensor) -> Tensor:
        return apply_ib_norm(x, self.weight, self.bias, self.compression, self.norm_lambda, self.eps, self.norm_order)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.norm_type}, lambda={self.norm_lambda:g}, {self.norm_order}"


class RMSNorm(TokenNorm):
    """``weight * x / rms(x)`` in float32, rounded to x's dtype before the weight as LLaMA's own (bit-equal to it)."""

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        h = (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        if self.weight is not None:
            h = self.weight * h
        return h if self.bias is None else h + self.bias


class DynamicTanh(TokenNorm):
    """DyT: ``weight * tanh(alpha x) + bias`` with a learned scalar alpha, no statistics (Zhu et al., arXiv:2503.10622).

    Args:
        alpha: initial value of alpha; the paper uses 0.5 outside large language models. ``eps`` has no use here.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        *,
        alpha: float = 0.5,
        norm_affine: bool = True,
        norm_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(width, eps, norm_affine=norm_affine, norm_bias=norm_bias, device=device, dtype=dtype)
        self.initial_alpha = alpha
        self.alpha = nn.Parameter(torch.full((1,), alpha, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.alpha * x)
        if self.weight is not None:
            y = y * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


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

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, mean = torch.var_mean(x32, -1, correction=0, keepdim=True)
        h = (x32 - mean) * torch.rsqrt(variance + self.eps)
        y = yeo_johnson(h, newton_exponent(h, (-1,), self.eps))
        if self.noise and self.training:
            scale = (y - y.mean(-1, keepdim=True)).abs().mean(-1, keepdim=True).detach()
            y = y + torch.randn_like(y) * (self.noise_factor * scale)
        if self.weight is not None:
            y = y * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, noise={self.noise_factor if self.noise else 0:g}"


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


_BASELINES = ("layernorm", "rmsnorm", "normalnorm", "normalnorm-noiseless", "dyt")
AREAS = ("token", "batch", "channel")


def list_norms(area: str = "token") -> list[str]:
    """Every name that ``create_norm`` understands for an area, registered compressions included.

    The ``batch`` area has one more, ``batchnorm``.
    """
    images = ("batchnorm",) if check_area(area) == "batch" else ()
    return sorted([*list_compressions(), *_BASELINES, *images])


def check_area(area: str) -> str:
    """Return the canonical name of an area; ValueError for an unknown one."""
    name = canonical_name(area)
    if name not in AREAS:
        raise unknown_name("area", area, AREAS)
    return name


def check_norm_type(norm_type: str, area: str = "token") -> str:
    """Return the canonical name of a norm; ValueError, with the known names and the nearest, for an unknown one."""
    name = canonical_name(norm_type)
    if name == "batchnorm" and area != "batch":
        raise ValueError("norm_type 'batchnorm' is for a host that normalizes over the batch, such as ResNet.")
    if name not in list_norms(area):
        raise unknown_name("norm_type", norm_type, list_norms(area))
    return name


def check_norm_flags(norm_type: str, norm_lambda: float | None, norm_order: str, area: str = "token") -> None:
    """ValueError where a flag is outside its domain or would be ignored by this norm_type."""
    name = check_norm_type(norm_type, area)
    if norm_lambda is not None:
        check_lambda(norm_lambda)
    order = check_order(norm_order)
    if name in list_compressions():
        if area == "batch" and order != NORM_ORDERS[0]:
            raise ValueError(
                f"norm_order={order} is for the features of a token; over a batch there is only one order."
            )
        return
    for flag, value, unset in (("norm_lambda", norm_lambda, None), ("norm_order", order, NORM_ORDERS[0])):
        if value != unset:
            raise ValueError(f"{flag}={value} has no meaning for '{name}', which compresses nothing; leave it unset.")


def create_norm(
    name: str,
    width: int,
    *,
    eps: float = 1e-5,
    norm_lambda: float | None = None,
    norm_order: str = "compress-first",
    norm_affine: bool = True,
    norm_bias: bool = True,
    area: str = "token",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A norm by name.

    Args:
        name: one of ``list_norms(area)``, blind to case and to ``_`` against ``-``.
        width: size of the last dimension, or the channels of an image.
        eps: added to the variance (``dyt`` has no use for it).
        norm_lambda, norm_order: IBNorm's; see ``IBNorm``.
        norm_affine, norm_bias: learn a weight, and a bias beside it.
        area: which elements share statistics: ``token``, the last dimension; ``batch``, N, H and W of each channel of
            (N, C, H, W), as in BatchNorm2d; ``channel``, the channels of each pixel of (N, C, H, W). ``layernorm``,
            ``rmsnorm`` and ``dyt`` are not defined over a batch and take the channels there.

    Raises:
        ValueError: an unknown name, or a flag outside its domain or without meaning for this norm.
    """
    area = check_area(area)
    check_norm_flags(name, norm_lambda, norm_order, area)
    name = canonical_name(name)
    affine: dict[str, Any] = {"norm_affine": norm_affine, "norm_bias": norm_bias, "device": device, "dtype": dtype}
    if area != "token":
        from .image_norms import create_image_norm

        return create_image_norm(name, width, area, eps=eps, norm_lambda=norm_lambda, norm_order=norm_order, **affine)
    if name == "layernorm":
        return nn.LayerNorm(width, eps, norm_affine, norm_bias, device, dtype)
    if name == "rmsnorm":
        return RMSNorm(width, eps, **affine)
    if name == "dyt":
        return DynamicTanh(width, eps, **affine)
    if name in ("normalnorm", "normalnorm-noiseless"):
        return NormalNorm(width, eps, noise=name == "normalnorm", **affine)
    return IBNorm(width, eps, norm_type=name, norm_lambda=norm_lambda, norm_order=norm_order, **affine)
