# SPDX-License-Identifier: Apache-2.0
"""Annealed lambda: from where IBNorm is LayerNorm down to its target, in stages, while training heals the model.

Ours; the paper keeps lambda fixed. A norm with lambda far above its activations is LayerNorm to rounding, so a
pretrained model that survives the swap to LayerNorm can be led to any lambda instead of being thrown there.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...common.errors import UserError
from ...common.nats import mean_nats
from ...common.packed import IGNORED
from ...common.private_torch import allow_recompiles
from ...modeling.batch_norms import IBBatchNorm2d
from ...modeling.lambdas import set_norm_lambda
from ...modeling.norms import IBNorm
from ...modeling.recognize import iter_norms
from ..keys.schedule import FREE_OF_COMPRESSION, LambdaSchedule

_LOWEST = 1e-2  # of the search for `auto`, in the schedule's unit
_HALVINGS = 10


@dataclass(frozen=True)
class LambdaPath:
    """A schedule made concrete for one model: the first and last lambda of every norm, and what was measured."""

    schedule: LambdaSchedule
    starts: list[float]
    ends: list[float]
    measured: dict[str, Any]

    def at(self, stage: int) -> float | list[float]:
        """Lambda of a stage: a number, or one a norm where they differ."""
        values = [self.schedule.between(a, b, stage) for a, b in zip(self.starts, self.ends, strict=True)]
        return values[0] if len(set(values)) == 1 else values

    def lines(self) -> list[str]:
        """What was measured, for people."""
        out = []
        if "spreads" in self.measured:
            spreads = self.measured["spreads"]
            out.append(f"lambda: the norms' inputs have spreads from {min(spreads):.3g} to {max(spreads):.3g}")
        if "auto_start" in self.measured:
            found = self.measured
            out.append(
                f"lambda: start {found['auto_start']:g}, where {found['tokens']:,} training tokens cost "
                f"{found['loss_at_start']:.4f} nats each against {found['loss_free']:.4f} uncompressed"
            )
        return [*out, f"lambda: from {_range(self.starts)} to {_range(self.ends)}"] if out else out

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for files; ``from_dict`` is the inverse."""
        return {"schedule": asdict(self.schedule), "starts": self.starts, "ends": self.ends, "measured": self.measured}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> LambdaPath:
        return cls(LambdaSchedule(**value["schedule"]), value["starts"], value["ends"], value["measured"])


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g}...{high:.4g}"


class AnnealLambda(TrainerCallback):
    """Set the lambda of each step's stage on the model's norms and in its config; a function of the step alone.

    So a resumed run goes on where it was, every checkpoint's config says the lambda it was saved at, and a compiled
    model, which is compiled for one lambda, is compiled again at most once a stage (and once for its validation).
    """

    def __init__(self, model: nn.Module, path: LambdaPath) -> None:
        self.model, self.path = model, path
        self._stage: int | None = None

    @property
    def norm_lambda(self) -> float | list[float]:
        """The lambda that is set now."""
        return self.path.at(self._stage or 0)

    def set(self, step: int, max_steps: int) -> None:
        """Make the model what it is during step ``step`` (from 1)."""
        stage = self.path.schedule.stage(step, max_steps)
        if stage != self._stage:
            self._stage = stage
            set_norm_lambda(self.model, self.path.at(stage))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.torch_compile:
            allow_recompiles(2 * int(self.path.schedule.stages) + 8)  # validation is compiled for its lambda, too
        self.set(state.global_step or 1, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.set(state.global_step + 1, state.max_steps)


def plan_lambda(
    model: Any, schedule: LambdaSchedule, end: float | list[float], ids: Tensor, labels: Tensor
) -> LambdaPath:
    """Measure what a schedule leaves open, and fix every norm's way. Leaves the model at its first lambda.

    Args:
        model: with IBNorm inside, as it is before training.
        schedule: as the recipe says it.
        end: target lambda, a number or one a norm in module order, in the schedule's unit.
        ids, labels: (blocks, length) int64 tokens of the training data, labels -100 where no loss falls; only read
            where something must be measured.

    Raises:
        UserError: the model has no IBNorm, the list has the wrong length, or ``start`` is below the target.
    """
    count = len(_ibnorms(model))
    ends = list(end) if isinstance(end, list) else [end] * count
    measured: dict[str, Any] = {}
    try:
        set_norm_lambda(model, FREE_OF_COMPRESSION)
    except ValueError as error:
        raise UserError(f"norm_lambda_schedule: {error}") from None
    if len(ends) != count:
        raise UserError(f"norm_lambda lists {len(ends)} values, but the model has {count} norms")
    spreads = [1.0] * count
    if schedule.unit == "spread":
        spreads = measured["spreads"] = measure_spreads(model, ids, labels)
    start = schedule.start
    if not isinstance(start, int | float):
        start, found = _search(model, spreads, schedule.max_loss, ids, labels)
        measured |= found
    elif start < max(ends):
        raise UserError(f"norm_lambda_schedule: start {start:g} is below the target {max(ends):g}; lambda must fall")
    last = [value * spread for value, spread in zip(ends, spreads, strict=True)]
    # A model that already bears its target has nowhere to fall from.
    first = [max(float(start) * spread, value) for spread, value in zip(spreads, last, strict=True)]
    path = LambdaPath(schedule, first, last, measured)
    set_norm_lambda(model, path.at(0))
    return path


def _ibnorms(model: nn.Module) -> list[list[nn.Module]]:
    return [modules for _, modules in iter_norms(model) if isinstance(modules[0], IBNorm)]


@torch.no_grad()
def to_compress(norm: IBNorm | IBBatchNorm2d, x: Tensor) -> Tensor:
    """What a norm holds against lambda, in fp32: x - mean(x), standardized as well for the standardize-first order."""
    if isinstance(norm, IBBatchNorm2d):
        return x.float() - x.float().mean((0, 2, 3), keepdim=True)
    d = x.float() - x.float().mean(-1, keepdim=True)
    if norm.norm_order == "standardize-first":
        d = d * torch.rsqrt(d.square().mean(-1, keepdim=True) + norm.eps)
    return d


@torch.no_grad()
def measure_spreads(model: Any, ids: Tensor, labels: Tensor) -> list[float]:
    """Root mean square of what each norm compresses, in module order, over ids (blocks, length)."""
    norms = [modules[-1] for modules in _ibnorms(model)]  # the last is the one in use, under an adapter
    sums = [[0.0, 0] for _ in norms]

    def watch(total: list[float]) -> Any:
        def add(module: IBNorm, inputs: tuple[Tensor, ...]) -> None:
            d = to_compress(module, inputs[0])
            total[0] += d.square().sum().item()
            total[1] += d.numel()

        return add

    hooks = [norm.register_forward_pre_hook(watch(total)) for norm, total in zip(norms, sums, strict=True)]
    try:
        nats_per_token(model, ids, labels)
    finally:
        for hook in hooks:
            hook.remove()
    return [math.sqrt(square / size) if size and square else 1.0 for square, size in sums]


def _search(
    model: Any, spreads: list[float], max_loss: float, ids: Tensor, labels: Tensor
) -> tuple[float, dict[str, Any]]:
    """Bisection on log lambda; the loss is taken to fall as lambda grows, which it does until it no longer matters."""

    def loss(scale: float) -> float:
        set_norm_lambda(model, [scale * spread for spread in spreads])
        return nats_per_token(model, ids, labels)

    free = loss(FREE_OF_COMPRESSION / max(spreads))
    low, high = math.log(_LOWEST), math.log(FREE_OF_COMPRESSION / max(spreads))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if loss(math.exp(middle)) - free <= max_loss else (middle, high)
    start = float(f"{1.005 * math.exp(high):.3g}")  # three digits, never below what was found
    return start, {"auto_start": start, "loss_free": free, "loss_at_start": loss(start), "tokens": _targets(labels)}


def nats_per_token(model: Any, ids: Tensor, labels: Tensor) -> float:
    """Mean negative log likelihood of a target over (blocks, length), a block at a time, in evaluation mode."""
    return mean_nats(model, zip(ids[:, None], labels[:, None], strict=True))


def _targets(labels: Tensor) -> int:
    return int((labels[:, 1:] != IGNORED).sum())
