# SPDX-License-Identifier: Apache-2.0
"""Mean negative log likelihood of a language model, the one way in which it is summed here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .packed import IGNORED


def summed_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """(sum of negative log likelihoods in nats, predicted tokens), float64 of shape (2,), on the device of ``logits``.

    Sums over rows in float64, so that batches and processes do not matter.

    Args:
        logits: (rows, length, vocabulary), of any floating dtype; taken in float32.
        labels: (rows, length), int64; the label at t is predicted at t - 1, and IGNORED ones count nothing.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=logits.device)
    for row, targets in zip(logits, labels[:, 1:], strict=True):
        nats = F.cross_entropy(row[:-1].float(), targets, ignore_index=IGNORED, reduction="none").double().sum()
        totals += torch.stack((nats, targets.ne(IGNORED).sum().double()))
    return totals


@torch.no_grad()
def mean_nats(model: Any, ids: Tensor, labels: Tensor | None = None, *, batch_size: int = 1) -> float:
    """Nats a predicted token of a causal model on ``ids`` (rows, length), int64, in eval mode; nan without a token.

    Args:
        labels: as in ``summed_nats``; None predicts every token.
        batch_size: rows at a time.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    totals = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(ids), batch_size):
        part = ids[start : start + batch_size].to(device)
        wanted = part if labels is None else labels[start : start + batch_size].to(device)
        totals += summed_nats(model(input_ids=part, use_cache=False).logits, wanted).cpu()
    model.train(was_training)
    return (totals[0] / totals[1]).item()
