# SPDX-License-Identifier: Apache-2.0
"""What a packed block holds: token ids, and the complement of those that are read but not predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

COLUMN = "input_ids"
PADDING = -1  # fills a block up: some token, read and not predicted
IGNORED = -100  # label of a position without loss: that of torch's cross entropy


def mask(ids: np.ndarray) -> np.ndarray:
    """Token ids (n,) -> how they are stored where no loss falls on them: int32, negative, ``~id``."""
    return ~ids.astype(np.int32)


def unpack(stored: Any) -> tuple[Tensor, Tensor]:
    """Stored blocks (..., block_size) -> int64 (ids, labels) of that shape.

    A label is the token's own id (models shift by themselves), or IGNORED where it was masked.
    """
    ids = np.asarray(stored).astype(np.int64)
    masked = ids < 0
    return torch.from_numpy(np.where(masked, ~ids, ids)), torch.from_numpy(np.where(masked, IGNORED, ids))
