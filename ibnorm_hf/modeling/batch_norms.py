# SPDX-License-Identifier: Apache-2.0
"""Norms over the batch area of ``nn.BatchNorm2d``: N, H and W of each channel, with running statistics."""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .batch_functional import (
    AREA,
    BatchStatistics,
    apply_running,
    at_least_float32,
    batch_ib_norm,
    batch_ib_norm_reference,
    column,
    recomputing,
    require_images,
    require_several,
)
from .norms import Compressing, newton_exponent, yeo_johnson
from .specs import NormSpec, register_norm, register_over_batch


class BatchAreaNorm(nn.Module):
    """Base of our norms over a batch of images: affine (C,), and running statistics updated in place.

    Arguments and their meaning are those of ``nn.BatchNorm2d``. Batch statistics are used in training mode, and
    always without running ones. A forward that gradient checkpointing repeats does not count a batch again.

    Raises (in forward):
        ValueError: the input is not (N, C, H, W), or a channel has a single value while batch statistics are used.
    """

    # transformers knows a BatchNorm by its class name and would set a running_var: `init_norms` sets ours instead.
    _is_hf_initialized = True

    initial_statistics: ClassVar[dict[str, float]] = {}
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        norm_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        for name, fill, wanted in (("weight", 1.0, affine), ("bias", 0.0, affine and norm_bias)):
            value = torch.full((num_features,), fill, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        for name, start in self.initial_statistics.items():
            value = torch.full((num_features,), start, device=device, dtype=dtype) if track_running_stats else None
            self.register_buffer(name, value)
        count = torch.tensor(0, dtype=torch.long, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)

    @property
    def uses_batch(self) -> bool:
        """Whether the next forward takes its statistics from its own batch."""
        return self.training or not self.track_running_stats

    def reset_parameters(self) -> None:
        """Give every parameter and running statistic its start value, by functions that leave alone what was loaded."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)
        if self.num_batches_tracked is not None:
            init.zeros_(self.num_batches_tracked)
            for name, start in self.initial_statistics.items():
                init.constant_(getattr(self, name), start)

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()
            for name, start in self.initial_statistics.items():
                getattr(self, name).fill_(start)

    @torch.no_grad()
    def _track(self, *statistics: Tensor) -> None:
        """Move the running statistics, in the order of ``initial_statistics``, toward a training batch's."""
        if not self.training or self.num_batches_tracked is None or recomputing():
            return
        self.num_batches_tracked.add_(1)
        for name, value in zip(self.initial_statistics, statistics, strict=True):
            running = getattr(self, name)
            if self.momentum is None:  # the plain mean over all batches
                running.lerp_(value.to(running.dtype), self.num_batches_tracked.float().reciprocal().to(running.dtype))
            else:
                running.lerp_(value.to(running.dtype), self.momentum)

    def _nothing(self, x: Tensor) -> Tensor:
        """The output for a batch without elements, which moves no statistic; every gradient is zero."""
        y = x if self.weight is None else x * column(self.weight)
        return (y if self.bias is None else y + column(self.bias)).to(x.dtype)

    def extra_repr(self) -> str:
        affine = "weight+bias" if self.bias is not None else "weight" if self.weight is not None else "none"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={affine}" + (
            "" if self.track_running_stats else ", track_running_stats=False"
        )


class IBBatchNorm2d(Compressing, BatchAreaNorm):
    """IBNorm in place of ``nn.BatchNorm2d``: compress toward each channel's batch mean, standardize, affine.

    The batch area, and running statistics of x's mean and of c's mean and variance, are sourced (arXiv:2510.25262);
    g and the factor lambda outside it are reconstructed (see ``ib_norm``).

    State dict: ``weight``, ``bias``, ``running_mean`` (of x) and ``num_batches_tracked`` mean what they mean in
    BatchNorm2d. ``running_compressed_mean`` and ``running_compressed_var`` are those of c; there is no ``running_var``,
    because the variance of x has no use here. The variance is the biased one, which also standardizes in training, so
    that with momentum 1 evaluation repeats the last training batch (BatchNorm2d keeps the unbiased one).

    Args:
        num_features: C of the input, (N, C, H, W) of any floating dtype and memory format.
        eps, momentum, affine, track_running_stats: as in ``nn.BatchNorm2d``; momentum None averages all batches.
        norm_type: ``ibnorm-l``, ``ibnorm-t``, ``ibnorm-s``, ``ibnorm-sqrt`` or a registered compression.
        norm_lambda: where compression sets in, in units of the input; None takes the variant's default.
        norm_bias: learn a bias beside the weight.
        norm_lambda_learned: learn lambda; see ``IBNorm``.

    Raises:
        ValueError: a name is unknown, or norm_lambda is not a finite number above 0.
    """

    initial_statistics = {"running_mean": 0.0, "running_compressed_mean": 0.0, "running_compressed_var": 1.0}
    running_mean: Tensor | None
    running_compressed_mean: Tensor | None
    running_compressed_var: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        norm_type: str = "ibnorm-l",
        norm_lambda: float | None = None,
        norm_bias: bool = True,
        norm_lambda_learned: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, norm_bias=norm_bias, device=device, dtype=dtype
        )
        self._set_compression(norm_type, norm_lambda, norm_lambda_learned, device, dtype)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_lambda()

    def forward(self, x: Tensor) -> Tensor:
        require_images(x, self.num_features)
        if self.uses_batch:
            y, statistics = self._normalize_batch(x)
            if statistics is not None:
                self._track(*statistics)
            return y
        assert self.running_mean is not None
        assert self.running_compressed_mean is not None and self.running_compressed_var is not None
        running = BatchStatistics(self.running_mean, self.running_compressed_mean, self.running_compressed_var)
        lam: Any = self._norm_lambda if self.log_lambda is None else self.lambda_(x)
        return apply_running(x, self.weight, self.bias, running, self.compression, lam, self.eps)

    def _normalize_batch(self, x: Tensor) -> tuple[Tensor, BatchStatistics | None]:
        if x.numel() == 0:
            return self._nothing(x), None
        require_several(x.numel() // self.num_features, x)
        if self.log_lambda is None:
            return batch_ib_norm(x, self.weight, self.bias, self.compression, self._norm_lambda, self.eps)
        x32, lam = at_least_float32(x), cast(float, self.lambda_(x))  # a tensor is a number to the reference
        y, statistics = batch_ib_norm_reference(x32, self.weight, self.bias, self.compression, lam, self.eps)
        return y.to(x.dtype), statistics

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.norm_type}, {self._lambda_repr()}"


class NormalBatchNorm2d(BatchAreaNorm):
    """Normality normalization of each channel over a batch (Eftekhari and Papyan, ICML 2025, arXiv:2505.00685).

    As ``NormalNorm``, with N, H, W of a channel as the area: inference standardizes with running mean and (biased)
    variance of x, and transforms with a running exponent. The noise of training is 0.4 of the mean absolute deviation.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as in ``nn.BatchNorm2d``.
        noise: off is the named variant ``normalnorm-noiseless``.
        noise_factor: xi, 0.4 for the batch area.
        norm_bias: learn a bias beside the weight.
    """

    initial_statistics = {"running_mean": 0.0, "running_var": 1.0, "running_exponent": 1.0}
    running_mean: Tensor | None
    running_var: Tensor | None
    running_exponent: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        noise: bool = True,
        noise_factor: float = 0.4,
        norm_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, norm_bias=norm_bias, device=device, dtype=dtype
        )
        self.noise = noise
        self.noise_factor = noise_factor

    def forward(self, x: Tensor) -> Tensor:
        require_images(x, self.num_features)
        if x.numel() == 0:
            return self._nothing(x)
        x32 = at_least_float32(x)
        if self.uses_batch:
            require_several(x.numel() // self.num_features, x)
            variance, mean = torch.var_mean(x32, AREA, correction=0, keepdim=True)
            h = (x32 - mean) * torch.rsqrt(variance + self.eps)
            exponent = newton_exponent(h, AREA, self.eps)
            self._track(mean.flatten(), variance.flatten(), exponent.flatten())
        else:
            assert self.running_mean is not None
            assert self.running_var is not None and self.running_exponent is not None
            mean, variance, exponent = (
                column(t).to(x32.dtype) for t in (self.running_mean, self.running_var, self.running_exponent)
            )
            h = (x32 - mean) * torch.rsqrt(variance + self.eps)
        y = yeo_johnson(h, exponent)
        if self.noise and self.training:
            scale = (y - y.mean(AREA, keepdim=True)).abs().mean(AREA, keepdim=True).detach()
            y = y + torch.randn_like(y) * (self.noise_factor * scale)
        if self.weight is not None:
            y = y * column(self.weight)
        return (y if self.bias is None else y + column(self.bias)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, noise={self.noise_factor if self.noise else 0:g}"


register_over_batch(
    "ibnorm-l", IBBatchNorm2d, "compresses toward the channel's mean over the batch, then centres and standardizes"
)
for _name in ("normalnorm", "normalnorm-noiseless"):
    register_over_batch(
        _name,
        NormalBatchNorm2d,
        "standardizes each channel over the batch, then a power transform toward normality",
    )
register_norm(
    NormSpec(
        name="batchnorm",
        classes={"batch": nn.BatchNorm2d},
        meaning="",
        batch_meaning="standardizes each channel over the batch",
        formula="w (x - mean(x)) / sqrt(var(x) + eps) + b, over N, H and W of a channel",
        status="as published",
        start="w 1, b 0",
        standardizes=True,
        citation="""@inproceedings{ioffe2015batch,
  title     = {Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift},
  author    = {Sergey Ioffe and Christian Szegedy},
  booktitle = {International Conference on Machine Learning},
  year      = {2015}
}""",
    )
)
