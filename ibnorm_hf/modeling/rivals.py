# SPDX-License-Identifier: Apache-2.0
"""Other people's replacements for a norm, each written from its formula and entered in the registry right below it."""

import torch
from torch import Tensor, nn

from .channel_norms import ChannelFirst
from .norms import TokenNorm
from .specs import NormSpec, register_norm


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


class DynamicTanh2d(ChannelFirst, DynamicTanh):
    """``DynamicTanh`` with a weight and bias a channel."""


register_norm(
    NormSpec(
        name="dyt",
        classes={"token": DynamicTanh, "channel": DynamicTanh2d, "batch": DynamicTanh2d},
        meaning="squashes each element on its own, without statistics",
        formula="w tanh(a x) + b, a scalar a",
        status="sourced",
        start="w 1, b 0, a 0.5",
        citation="""@article{zhu2025transformers,
  title   = {Transformers without Normalization},
  author  = {Jiachen Zhu and Xinlei Chen and Kaiming He and Yann LeCun and Zhuang Liu},
  journal = {arXiv preprint arXiv:2503.10622},
  year    = {2025}
}""",
    )
)
