# SPDX-License-Identifier: Apache-2.0
"""How far a run's next-token probabilities can be trusted, on its own validation blocks.

A model whose probabilities are right is as surprised as it expects to be: its loss is the mean entropy of what it
predicts. ``overconfidence`` is the loss minus that entropy, in nats a token: above 0 it is too sure, below 0 not sure
enough. ``calibration_error`` compares the share of right first guesses with the probability given to them, over 15
intervals of that probability (Guo et al., arXiv:1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...common.errors import UserError
from ...common.packed import COLUMN, IGNORED, unpack
from ...common.paths import write_json
from ..perplexity import autocast_of, open_model, parse_options, precision_of, processes
from ..target import Target

BINS = 15
_SUMS = ("tokens", "loss", "entropy", "top1", "top5", "confidence")


def measure(
    target: Target, blocks: Path | None, output: Path, words: Sequence[str], alone: bool
) -> dict[str, Any] | None:
    """Write ``calibration.json`` into ``output`` and return its content (None but on the first process).

    Args:
        target: a run, or a checkpoint of one.
        blocks: folder of the packed blocks; None takes where the run left them.
        output: a folder.
        words: options of ``perplexity``, without those of a text.
        alone: no harness task was asked for, so other options are mistakes.

    Raises:
        UserError: as of ``evaluate_perplexity``.
    """
    if target.run is None:
        raise UserError(
            f"calibration needs the validation blocks of a run, and {target.pretrained} is none; give a run"
        )
    options = parse_options(words, alone, "calibration")
    model, data, description = open_model(target, None, blocks, options)
    rank, world = processes()
    mine, size, autocast = range(rank, len(data), world), options.batch_size, autocast_of(target)
    device = next(model.parameters()).device
    sums = torch.zeros(len(_SUMS) + BINS, dtype=torch.float64, device=device)
    for start in range(0, len(mine), size):
        ids, labels = unpack(data[list(mine[start : start + size])][COLUMN])
        with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(input_ids=ids.to(device), use_cache=False).logits
        for row, targets in zip(logits, labels.to(device), strict=True):
            sums += token_sums(row, targets)
    if world > 1:
        dist.all_reduce(sums)
    if rank != 0:
        return None
    result = {**_means(sums), "blocks": len(data), "all_blocks": description["blocks"], "bins": BINS}
    result |= {"sha256": description["sha256"], "model_sha256": target.fingerprint(), "processes": world}
    result |= {"model": target.peft or target.pretrained, **precision_of(model, autocast)}
    write_json(output / "calibration.json", result)
    return result


def token_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over the predicted tokens of a row, float64: those of ``_SUMS``, then right minus given a bin.

    Args:
        logits: (length, vocabulary), of any floating dtype; taken in float32.
        labels: (length,), int64; the label at t is predicted at t - 1, and ignored ones count nothing.
    """
    counted = labels[1:] != IGNORED
    logs, targets = logits[:-1][counted].float().log_softmax(-1), labels[1:][counted]
    best = logs.topk(min(5, logs.shape[-1]), -1)
    right = best.indices == targets[:, None]
    confidence = best.values[:, 0].exp().double()
    of_token = (
        torch.ones_like(confidence),
        -logs.gather(-1, targets[:, None])[:, 0].double(),
        -(logs.exp() * logs).nan_to_num().sum(-1).double(),
        right[:, 0].double(),
        right.any(-1).double(),
        confidence,
    )
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS, dtype=torch.float64, device=logits.device)
    gaps.index_add_(0, place, right[:, 0].double() - confidence)
    return torch.cat([torch.stack([values.sum() for values in of_token]), gaps])


def _means(sums: Tensor) -> dict[str, Any]:
    found = dict(zip(_SUMS, sums.tolist(), strict=False))
    tokens = found.pop("tokens")
    means = {name: value / tokens for name, value in found.items()}
    if not math.isfinite(means["loss"]):
        raise UserError("the loss on these blocks is not finite; the weights are damaged", exit_code=1)
    gaps = sums[len(_SUMS) :]
    return {
        **means,
        "overconfidence": means["loss"] - means["entropy"],
        "calibration_error": float(gaps.abs().sum()) / tokens,
        "tokens": int(tokens),
    }


def summary(result: dict[str, Any]) -> str:
    """What the console is told."""
    return (
        f"next token: top-1 {result['top1']:.4f}  top-5 {result['top5']:.4f}  calibration error "
        f"{result['calibration_error']:.4f}  loss {result['loss']:.4f} - entropy {result['entropy']:.4f} = "
        f"{result['overconfidence']:+.4f} nats (above 0: too sure)  tokens {result['tokens']:,}"
    )
