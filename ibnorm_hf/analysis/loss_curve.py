# SPDX-License-Identifier: Apache-2.0
"""The loss curve of a run, from its metrics.jsonl and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from ..common.run import Run


def plot_loss_curve(run: str | Path, *, target: str | Path | None = None, anew: bool = True) -> Path:
    """Draw training and validation loss over steps, in nats a token, or nats an image for a classifier.

    Args:
        run: run folder with a metrics.jsonl.
        target: PNG to write; `loss.png` in the run folder by default.

        anew: draw it although the file is there.

    Raises:
        ValueError: metrics.jsonl is absent or holds no loss.
    """
    run = Path(run)
    target = Path(target) if target is not None else run / "loss.png"
    if target.is_file() and not anew:
        return target
    train, validation = read_losses(run / "metrics.jsonl")
    # The object interface: pyplot would pick a display and keep every figure alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), lw=1.2, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", ms=3.5, lw=1.2, label="validation")
    axes.set(xlabel="step", ylabel=f"loss (nats {_unit(run)})", title=run.resolve().name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)
    return target


def _unit(run: Path) -> str:
    """What a loss is the mean over: the lines of a classifier count images."""
    return "an image" if any("images" in line for line in Run(run).metrics) else "a token"


def read_losses(path: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """((step, training loss) ..., (step, validation loss) ...) of a metrics.jsonl; unreadable lines are skipped."""
    train, validation = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the half line of a run that was killed
        if "loss" in line:
            train.append((line["step"], line["loss"]))
        elif "eval_loss" in line:
            validation.append((line["step"], line["eval_loss"]))
    if not train:
        raise ValueError(f"{path} holds no training loss yet")
    return train, validation
