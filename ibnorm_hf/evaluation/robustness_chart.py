# SPDX-License-Identifier: Apache-2.0
"""A picture of a classifier's scores: accuracy against the severity of each corruption, with an image of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.paths import write_json
from ..common.run import Run, model_folder, verify_model
from .chart import require_png, save
from .classification import evaluate_images
from .corruptions import CORRUPTIONS, corrupt


def judge_classifier(folder: Path, model: Any, images: Any, prepare: Any, *, batch_size: int) -> list[str]:
    """Measure a run's classifier on clean and corrupted images: eval/robustness.json and .png; returns lines to print.

    ``model``, ``images``, ``prepare`` and ``batch_size`` are those of ``evaluate_images``. Without a ``model`` that has
    just been trained, what was measured earlier is taken, or else the model of the folder.
    """
    if model is None:
        if measured := Run(folder).results("robustness"):
            return robustness_lines(measured)
        from transformers import AutoModelForImageClassification

        from .. import registration  # noqa: F401

        weights = model_folder(folder)
        verify_model(weights)
        model = AutoModelForImageClassification.from_pretrained(weights, trust_remote_code=False)
    robustness = evaluate_images(model, images, prepare, batch_size=batch_size)
    write_json(folder / "eval" / "robustness.json", robustness)
    picture = folder / "eval" / "robustness.png"
    draw_robustness(robustness, images[0]["pixel_values"], picture, f"{folder.name}, {len(images):,} images")
    return [*robustness_lines(robustness), f"robustness {picture}"]


def robustness_lines(robustness: dict[str, Any]) -> list[str]:
    """The numbers of eval/robustness.json that one looks at first."""
    clean = robustness["clean"]
    return [
        f"validation loss {clean['loss']:.4f}  top-1 {clean['top1']:.4f}  top-5 {clean['top5']:.4f}",
        f"calibration error {clean['calibration_error']:.4f}  corrupted top-1 {robustness['corrupted_top1']:.4f}",
    ]


def draw_robustness(result: dict[str, Any], image: Tensor, path: Path, title: str = "") -> None:
    """Write a PNG of what ``evaluate_images`` returned.

    Args:
        result: top-1 on clean images and by corruption and severity.
        image: (C, H, W) uint8, shown under every corruption.
        path: a file that ends in .png.

    Raises:
        UserError: the file's name does not end in .png, or it cannot be written.
    """
    require_png(path)
    # The object interface: pyplot would pick a display and keep every figure alive.
    from matplotlib.figure import Figure

    severities = [int(s) for s in result["corrupted"][CORRUPTIONS[0]]]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    left, right = parts
    axes = left.subplots()
    clean = 100 * result["clean"]["top1"]
    # The first lines are the widest, so that each is seen where another equals it.
    for i, name in enumerate(CORRUPTIONS):
        shares = [100 * result["corrupted"][name][str(s)]["top1"] for s in severities]
        axes.plot([0, *severities], [clean, *shares], f"C{i}{'os^'[i % 3]}-", ms=8 - 2 * i, lw=4 - 1.2 * i, label=name)
    axes.axhline(100 / result["classes"], color="grey", ls=":", lw=1, label="chance")
    axes.set(xlabel="severity (0: clean)", ylabel="top-1 accuracy, %", ylim=(0, 100), xticks=[0, *severities])
    axes.set_title(title or f"{result['images']:,} images", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    grid = right.subplots(len(CORRUPTIONS), len(severities) + 1, squeeze=False)
    values = image[None].float() / 255
    for row, name in zip(grid, CORRUPTIONS, strict=True):
        for cell, severity in zip(row, [0, *severities], strict=True):
            seen = values if not severity else corrupt(values, name, severity, torch.Generator().manual_seed(0))
            _show(cell, seen[0])
            if name == CORRUPTIONS[0]:
                cell.set_title(str(severity), fontsize="small")
        row[0].set_ylabel(name, fontsize="small")
    save(figure, path, dpi=120)


def _show(axes: Any, image: Tensor) -> None:
    if image.shape[0] == 1:
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
    else:
        axes.imshow(image.permute(1, 2, 0).numpy())
    axes.set_xticks([])
    axes.set_yticks([])
