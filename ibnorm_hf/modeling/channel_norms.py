# SPDX-License-Identifier: Apache-2.0
"""A norm over the last dimension, put to images: the features of each pixel of (N, C, H, W) are its channels."""

from torch import Tensor


class ChannelFirst:
    """Put before a norm over the last dimension: it then acts on dimension 1; the result is channels-last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[misc]
