# SPDX-License-Identifier: Apache-2.0
"""What the norms do while a model trains, for any Trainer and its trackers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...modeling.batch_norms import IBBatchNorm2d
from ...modeling.norms import IBNorm
from ...modeling.recognize import iter_norms
from .anneal import to_compress


class CompressionShares:
    """Share of activations with |d| > lambda at each IBNorm, measured on the steps that are logged.

    d is what the compression sees, ``to_compress``. A share near 0 means that the norm is a LayerNorm in all but
    name; the hooks only read.
    """

    def __init__(self, model: nn.Module) -> None:
        self.active = False
        self._sums: dict[str, list[Tensor]] = {}
        self.hooks: list[Any] = []
        for name, modules in iter_norms(model):
            for module in modules:
                if isinstance(module, IBNorm | IBBatchNorm2d):
                    self.hooks.append(module.register_forward_pre_hook(self._hook(name)))

    def _hook(self, name: str) -> Any:
        def measure(module: IBNorm | IBBatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
            if self.active and module.training:
                with torch.no_grad():
                    d = to_compress(module, inputs[0])
                    self._sums.setdefault(name, []).append((d.abs() > module.norm_lambda).float().mean())

        return measure

    def read(self) -> dict[str, float]:
        """Mean share by module name since the last call."""
        shares = {name: torch.stack(values).mean().item() for name, values in self._sums.items()}
        self._sums.clear()
        return shares

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self.hooks:
            hook.remove()


def lambdas(model: nn.Module) -> list[float]:
    """Lambda of each IBNorm now, in module order."""
    norms = [module for _, modules in iter_norms(model) for module in modules]
    return [float(norm.norm_lambda) for norm in norms if isinstance(norm, IBNorm | IBBatchNorm2d)]


def for_trackers(scales: Iterable[float], shares: dict[str, float]) -> dict[str, float]:
    """Plain numbers under names that trackers draw: lambda's range and the shares beyond it, mean and of each norm."""
    scales = list(scales)
    out = {f"share_over_lambda/{name}": share for name, share in shares.items()}
    if shares:
        out["share_over_lambda"] = sum(shares.values()) / len(shares)
    if scales:
        out["norm_lambda"] = sum(scales) / len(scales)
        if min(scales) != max(scales):
            out |= {"norm_lambda_min": min(scales), "norm_lambda_max": max(scales)}
    return out


class NormTelemetry(TrainerCallback):
    """Tell the log and the trackers of any Trainer what its IBNorms do: lambda, and the share of activations beyond it.

    ``NormTelemetry().attach(trainer)`` adds it in front of the trackers, so that TensorBoard, wandb and others get the
    numbers with the loss; given as ``Trainer(callbacks=[...])`` it comes after them, and they do not.

    Example:
        trainer = Trainer(model, args, train_dataset=data)
        NormTelemetry().attach(trainer)
        trainer.train()
    """

    def __init__(self) -> None:
        self.shares: CompressionShares | None = None
        self.model: Any = None

    def attach(self, trainer: Any) -> NormTelemetry:
        """Add it to a Trainer, before its other callbacks. Returns itself."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin to watch the model's norms."""
        self.model, self.shares = model, CompressionShares(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure on the steps that are logged alone."""
        if self.shares is not None:
            due = (state.global_step + 1) % max(1, int(state.logging_steps)) == 0
            self.shares.active = due or (args.logging_first_step and state.global_step == 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Add the numbers to those of the loss."""
        if logs and "loss" in logs and self.shares is not None:
            logs.update(for_trackers(lambdas(self.model), self.shares.read()))
            state.log_history[-1:] = [{**state.log_history[-1], **logs}] if state.log_history else []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        if self.shares is not None:
            self.shares.remove()
            self.shares = None
