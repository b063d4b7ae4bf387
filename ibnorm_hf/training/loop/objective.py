# SPDX-License-Identifier: Apache-2.0
"""What text and images differ in inside the one training loop: batches, scores, and the words of the log."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.nats import row_nats
from ...common.packed import COLUMN, IGNORED, unpack
from ..model.image_build import Views


class Objective(Protocol):
    """One kind of data, as the trainer and its log need to know it."""

    unit: str  # what a step is counted in
    over_the_batch: bool  # the loss is a mean over the whole batch, not over its micro-batch
    shown: dict[str, str]  # scores beside the loss that are logged at every validation, and how they are printed

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows of the data set -> a batch."""

    def count(self, batch: dict[str, Tensor]) -> tuple[int, Tensor]:
        """(units, predicted targets) of a batch; the latter where the batch is, without waiting for it."""

    def train(self, batch: dict[str, Tensor], draw: str) -> dict[str, Tensor]:
        """A batch on its device -> the model's input in training; ``draw`` names it, and decides its chances."""

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch on its device -> the model's input in validation, without labels."""

    def sums(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """One float64 vector a row, to be added up over all of the validation data."""

    def scores(self, totals: list[float]) -> dict[str, Any]:
        """The sums over all data -> loss (nats) and whatever else is reported."""


class TextObjective:
    """Next tokens of packed blocks."""

    unit, over_the_batch, shown = "tokens", True, {"perplexity": ".2f"}

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Blocks -> (batch, block_size) int64 input_ids, and labels as `unpack` gives them."""
        ids, labels = unpack(np.stack([row[COLUMN] for row in rows]))
        return {"input_ids": ids, "labels": labels}

    def count(self, batch: dict[str, Tensor]) -> tuple[int, Tensor]:
        """Tokens, and those that are predicted: all but a block's first and the masked ones."""
        return batch["input_ids"].numel(), batch["labels"][:, 1:].ne(IGNORED).sum()

    def train(self, batch: dict[str, Tensor], draw: str) -> dict[str, Tensor]:
        """Blocks as they are."""
        return batch

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Blocks, read once."""
        return {"input_ids": batch["input_ids"], "use_cache": False}

    def sums(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """(nats, targets) a block; logits (batch, length, vocabulary)."""
        return list(row_nats(logits, labels))

    def scores(self, totals: list[float]) -> dict[str, Any]:
        """loss a target token, its exponential (None where that is no number), and the targets."""
        loss = totals[0] / totals[1]
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else None, "tokens": int(totals[1])}


class ImageObjective:
    """Classes of images, augmented a micro-batch at a time, on the device.

    Their generator is named by seed, step, micro-batch and process: a resumed run sees the same crops. The loss is the
    mean of a micro-batch whatever the model is told of the whole batch, and Trainer, believing the signature, would
    add micro-batches and processes up instead of averaging them.
    """

    unit, over_the_batch, shown = "images", False, {"top1": ".4f", "top5": ".4f"}

    def __init__(self, views: Views) -> None:
        self.views = views

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Images -> (batch, C, H, W) uint8 pixel_values and (batch,) int64 labels."""
        labels = torch.stack([torch.as_tensor(row["labels"]) for row in rows])
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}

    def count(self, batch: dict[str, Tensor]) -> tuple[int, Tensor]:
        """Images, each with one target."""
        labels = batch["labels"]
        return len(labels), torch.full((), len(labels), device=labels.device)

    def train(self, batch: dict[str, Tensor], draw: str) -> dict[str, Tensor]:
        """Augmented and normalized."""
        return {**batch, "pixel_values": self.views.train(batch["pixel_values"], draw)}

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The centre, normalized."""
        return {"pixel_values": self.views.evaluate(batch["pixel_values"])}

    def sums(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """(nats, hit, hit among the best five, 1) an image; logits (batch, classes)."""
        nats = F.cross_entropy(logits.double(), labels, reduction="none")
        hits = logits.topk(min(5, logits.shape[-1]), -1).indices == labels[:, None]
        return list(torch.stack((nats, hits[:, 0].double(), hits.any(-1).double(), torch.ones_like(nats)), -1))

    def scores(self, totals: list[float]) -> dict[str, Any]:
        """loss, top1 and top5 an image, and the images."""
        loss, top1, top5 = (total / totals[3] for total in totals[:3])
        return {"loss": loss, "top1": top1, "top5": top5, "images": int(totals[3])}
