# SPDX-License-Identifier: Apache-2.0
"""Token norms for images in (N, C, H, W): the features of each pixel are its channels."""

from torch import Tensor, nn

from .norms import DynamicTanh, IBNorm, NormalNorm, RMSNorm


class ChannelFirst:
    """Put before a norm over the last dimension: it then acts on dimension 1; the result is channels-last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[misc]


class IBNorm2d(ChannelFirst, IBNorm):
    """``IBNorm`` over the channels of each pixel."""


class LayerNorm2d(ChannelFirst, nn.LayerNorm):
    """``nn.LayerNorm`` over the channels of each pixel."""


class RMSNorm2d(ChannelFirst, RMSNorm):
    """``RMSNorm`` over the channels of each pixel."""


class NormalNorm2d(ChannelFirst, NormalNorm):
    """``NormalNorm`` over the channels of each pixel."""


class DynamicTanh2d(ChannelFirst, DynamicTanh):
    """``DynamicTanh`` with a weight and bias a channel."""
