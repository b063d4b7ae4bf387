# SPDX-License-Identifier: Apache-2.0
"""What a classifier of images is worth: top-1, top-5, calibration, and all of it on corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .corruptions import CORRUPTIONS, SEVERITIES, corrupt

BINS = 15


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Any,
    prepare: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 256,
    change: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) in float32 and labels (N,), on the CPU; in eval mode.

    Args:
        images: a map-style data set of ``{"pixel_values": (C, H, W) uint8, "labels": int}``; one with tensors
            ``pixels`` (N, C, H, W) and ``labels`` (N,) is read by slices.
        prepare: what the model was trained behind: (N, C, H, W) float in [0, 1] to its input.
        change: what is done to the images before, e.g. a corruption; float in [0, 1] to the same.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits, labels = [], []
    for pixels, answers in _pieces(images, batch_size):
        values = pixels.to(device).float() / 255
        out = model(pixel_values=prepare(values if change is None else change(values))).logits
        logits.append(out.float().cpu())
        labels.append(answers)
    model.train(was_training)
    return torch.cat(logits), torch.cat(labels)


def _pieces(images: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(images), size):
        stop = min(start + size, len(images))
        if hasattr(images, "pixels"):
            yield images.pixels[start:stop], images.labels[start:stop]
        else:
            rows = [images[i] for i in range(start, stop)]
            yield torch.stack([r["pixel_values"] for r in rows]), torch.tensor([int(r["labels"]) for r in rows])


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1 and top5 as shares of 1 (top5 is 1 for at most five classes), loss in nats, and calibration error."""
    best = logits.topk(min(5, logits.shape[-1]), -1).indices == labels[:, None]
    return {
        "top1": best[:, 0].double().mean().item(),
        "top5": best.any(-1).double().mean().item(),
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "calibration_error": calibration_error(logits, labels),
    }


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., arXiv:1706.04599): mean gap of confidence and accuracy.

    Predictions fall into ``bins`` equal intervals of confidence; gaps are weighted by their counts.
    """
    confidence, predicted = logits.double().softmax(-1).max(-1)
    correct = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, correct - confidence)
    return (gaps.abs().sum() / len(labels)).item()


def evaluate_images(
    model: nn.Module,
    images: Any,
    prepare: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 256,
    seed: int = 0,
    severities: tuple[int, ...] = SEVERITIES,
) -> dict[str, Any]:
    """Scores on clean images and under every corruption and severity; corruptions are made on the fly from ``seed``.

    Returns:
        ``{"images": N, "classes": C, "clean": scores, "corrupted": {name: {severity: scores}},
        "corrupted_top1": mean over all corruptions and severities, "seed": seed}``
    """
    clean = scores(*predict(model, images, prepare, batch_size=batch_size))
    corrupted: dict[str, dict[str, dict[str, float]]] = {}
    for name in CORRUPTIONS:
        corrupted[name] = {}
        for severity in severities:
            generator = torch.Generator().manual_seed(seed)

            def change(
                values: Tensor, name: str = name, severity: int = severity, generator: torch.Generator = generator
            ) -> Tensor:
                return corrupt(values, name, severity, generator)

            predicted = predict(model, images, prepare, batch_size=batch_size, change=change)
            corrupted[name][str(severity)] = scores(*predicted)
    every = [s["top1"] for by_severity in corrupted.values() for s in by_severity.values()]
    return {
        "images": len(images),
        "classes": int(model.config.num_labels),  # type: ignore[union-attr, arg-type]
        "clean": clean,
        "corrupted": corrupted,
        "corrupted_top1": sum(every) / len(every),
        "seed": seed,
    }
