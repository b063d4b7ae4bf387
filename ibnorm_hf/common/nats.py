# SPDX-License-Identifier: Apache-2.0
"""Mean negative log likelihood of a language model, the one way in which it is summed here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .next_token import require_next_token
from .packed import IGNORED


def row_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """(sum of negative log likelihoods in nats, predicted tokens) of each row: float64, (rows, 2).

    Args:
        logits: (rows, length, vocabulary), of any floating dtype; taken in float32.
        labels: (rows, length), int64; the label at t is predicted at t - 1, and IGNORED ones count nothing.
    """
    rows = []
    for row, targets in zip(logits, labels[:, 1:], strict=True):
        nats = F.cross_entropy(row[:-1].float(), targets, ignore_index=IGNORED, reduction="none").double().sum()
        rows.append(torch.stack((nats, targets.ne(IGNORED).sum().double())))
    return torch.stack(rows)


@torch.no_grad()
def nats_of_rows(
    model: Any, batches: Iterable[tuple[Tensor, Tensor]], *, autocast: torch.dtype | None = None
) -> Iterator[Tensor]:
    """What ``row_nats`` says of each batch in turn, by a causal model that is in eval mode meanwhile.

    Args:
        batches: (ids, labels) each, as in ``row_nats``.
        autocast: the dtype of mixed precision; None for none.

    Raises:
        UserError: the model's tokens see those that follow.
    """
    if hasattr(model, "config"):
        require_next_token(model.config, "the model to score")
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    for ids, labels in batches:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(input_ids=ids.to(device), use_cache=False).logits
        yield row_nats(logits, labels.to(device))
    model.train(was_training)


def summed_nats(model: Any, batches: Iterable[tuple[Tensor, Tensor]], *, autocast: torch.dtype | None = None) -> Tensor:
    """(sum of negative log likelihoods in nats, predicted tokens) of a causal model: float64, (2,), where the model is.

    Sums over rows are in float64, so that batches and processes do not matter. Arguments as of ``nats_of_rows``.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=next(model.parameters()).device)
    for rows in nats_of_rows(model, batches, autocast=autocast):
        for row in rows:
            totals += row
    return totals


def mean_nats(model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Nats a predicted token, of what ``summed_nats`` takes; nan without a token to predict."""
    nats, count = summed_nats(model, batches).tolist()
    return nats / count if count else math.nan
