# SPDX-License-Identifier: Apache-2.0
"""What happens beside the training loop: the log, the console, divergence, Ctrl-C."""

from __future__ import annotations

import json
import math
import signal
import statistics
import sys
from collections import deque
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from ...common.errors import Diverged
from ...common.paths import write_atomic
from ..folder.manifest import STOPPED_EARLY
from .clock import Cost, duration
from .shapes import LayerShapes
from .telemetry import CompressionShares, for_trackers, lambdas


class RunLog(TrainerCallback):
    """Write ``metrics.jsonl`` and sober lines (a bar on a terminal); main process only.

    Tokens (or images), targets and the digest of the samples are those that arrived; speed is theirs over the time from
    step end to step end without validation and saving, and ``data_wait`` the share of it spent waiting for data.
    """

    def __init__(
        self, path: Path, trainer: Any, *, shares: CompressionShares | None, shapes: LayerShapes | None = None
    ) -> None:
        self.path, self.trainer, self.shares, self.shapes = path, trainer, shares, shapes
        self.units = 0  # that had arrived when the clock was read
        self.bar: Any = None
        self.cost, self.begun = Cost(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed state brings the intervals of its checkpoint: those of this command count.
        state.compute_steps(args, state.max_steps)
        if state.is_world_process_zero:
            trim_log(self.path, state.global_step)
            self.cost, self.begun = Cost.after(self.path), state.global_step
            self.units = self.trainer.arrivals.units
            # On a terminal only: in a file, a bar would be thousands of lines.
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, disable=not sys.stdout.isatty())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for reader in (self.shares, self.shapes):
            if reader is not None:
                reader.active = (state.global_step + 1) % max(1, int(state.logging_steps)) == 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        objective = self.trainer.objective
        if "eval_loss" in logs:
            line = {"step": state.global_step, "eval_loss": logs["eval_loss"]}
            text = f"step {state.global_step}  validation loss {line['eval_loss']:.4f}"
            for name, style in objective.shown.items():
                line[f"eval_{name}"] = value = logs[f"eval_{name}"]
                text += "" if value is None else f"  {name} {value:{style}}"
            if "eval_since_best" in logs:
                line["eval_since_best"] = logs["eval_since_best"]
            if early := self.trainer.facts.get(STOPPED_EARLY):
                line[STOPPED_EARLY] = True
                text += f"  stopped early: none better since step {early['best_step']}"
        elif "loss" in logs:
            line = self._training_line(state, logs)
            text = f"step {line['step']}/{state.max_steps}  loss {line['loss']:.4f}  lr {line['lr']:.2e}"
            text += f"  {line[f'{objective.unit}_per_s']:,.0f} {objective.unit}/s"
            text += self._expected(state, line["seconds"])
            # Trackers, which come after this, get what the line says beside the loss.
            scales = lambdas(self.trainer.model) if self.shares is not None else []
            logs.update(for_trackers(scales, line.get("share_over_lambda", {})))
            logs[f"{objective.unit}_per_s"] = line[f"{objective.unit}_per_s"]
        else:
            return
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, allow_nan=False) + "\n")
        self._say(text)

    def _training_line(self, state: Any, logs: dict[str, float]) -> dict[str, Any]:
        unit, arrivals = self.trainer.objective.unit, self.trainer.arrivals
        seconds, waiting = self.trainer.clock.read()
        line: dict[str, Any] = {
            "step": state.global_step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            unit: arrivals.units,
            "targets": arrivals.targets,
            f"{unit}_per_s": round((arrivals.units - self.units) / seconds, 1) if seconds else 0.0,
            "data_wait": round(waiting, 4),
            "seconds": round(self.cost.seconds, 3),
            "core_seconds": round(self.cost.core_seconds, 3),
            "samples_sha256": arrivals.digest(),
        }
        self.units = arrivals.units
        if self.trainer.anneal is not None:
            line["norm_lambda"] = self.trainer.anneal.norm_lambda
        if self.shares is not None and (shares := self.shares.read()):
            line["share_over_lambda"] = {name: round(share, 6) for name, share in shares.items()}
        if self.shapes is not None and (shapes := self.shapes.read()):
            line["shapes"] = shapes
        return line

    def _expected(self, state: Any, seconds: float) -> str:
        """Time since the run began, and what is left of it at the mean speed of this command."""
        done = state.global_step - self.begun
        left = self.cost.of_this_command * (state.max_steps - state.global_step) / done if done > 0 else 0.0
        return f"  {duration(seconds)}" + (f", {duration(left)} left" if state.global_step < state.max_steps else "")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def _say(self, text: str) -> None:
        if self.bar is not None and not self.bar.disable:
            self.bar.write(text)
        else:
            print(text, flush=True)


def trim_log(path: Path, step: int) -> None:
    """Drop the lines after ``step``, and a last half line: what was logged after a checkpoint is trained again.

    At step 0 all go, a validation before the first step as well.
    """
    if not path.is_file():
        return
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if 0 < step >= json.loads(text)["step"]:
                kept.append(text)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomic(path, "".join(f"{text}\n" for text in kept))


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. After that, Ctrl-C stops at once.

    A second SIGTERM is no second order: under Slurm a process gets one from the scheduler and one from its launcher.

    With several processes the decision is shared, as all must save the same step: at every step on CPUs, and where
    sharing would make the host wait for its device, at the steps that are logged or saved.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: whoever owns it decides
                break
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is None:
            self.received = number
            print("stopping after this step; Ctrl-C then stops at once", file=sys.stderr, flush=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        wanted = self.received is not None
        if args.world_size > 1:
            if args.device.type != "cpu" and not (control.should_log or control.should_save or control.should_evaluate):
                return control
            flag = torch.tensor(float(wanted), device=args.device)
            torch.distributed.all_reduce(flag)
            wanted = bool(flag.item())
        if wanted:
            self.received = self.received or signal.SIGINT
            control.should_save = True
            control.should_training_stop = True
        return control


class GradientGuard:
    """Judge the norm of every step's gradient, over all processes and before clipping.

    A norm that is no number always ends the run. So does one ``factor`` times the median of the last 64 steps,
    which clipping would turn into an update in the direction of one bad step; None switches this off. The norms are
    kept in checkpoints, so that a resumed run judges as an uninterrupted one does. Norms are judged when the host waits
    for its device anyhow, at the latest before anything is validated or saved: none that is bad reaches a checkpoint.
    """

    window, least = 64, 16

    def __init__(self, order: Any, factor: float | None) -> None:
        self.order, self.factor = order, factor
        self.norms: deque[float] = deque(maxlen=self.window)

    def check(self, norm: float, step: int) -> None:
        """Raise UserError if the run must stop at step ``step``."""
        if not math.isfinite(norm):
            raise diverged("gradient", step, self.order)
        if self.factor is not None and len(self.norms) >= self.least:
            usual = statistics.median(self.norms)
            if norm > self.factor * usual > 0:
                raise Diverged(
                    f"the gradient spiked at step {step} ({_blocks(self.order, step)}): its norm {norm:.3g} is more "
                    f"than grad_spike_factor = {self.factor:g} times the usual {usual:.3g}; earlier checkpoints are "
                    "good: look at those blocks, lower learning_rate, or go on with a higher grad_spike_factor",
                )
        self.norms.append(norm)


def _blocks(order: Any, step: int) -> str:
    ids = order.ids(step)
    return f"blocks {', '.join(map(str, ids[:16]))}{', ...' if len(ids) > 16 else ''}"


def diverged(what: str, step: int, order: Any) -> Diverged:
    """The error of a run whose loss or gradient is no longer a number."""
    return Diverged(
        f"the {what} became nan or infinite at step {step} ({_blocks(order, step)}); earlier checkpoints are good: "
        "lower learning_rate, or lengthen warmup_steps, and start again",
    )


def diverged_validation(loss: float, step: int) -> Diverged:
    """The error of a run whose validation is no longer a number."""
    return Diverged(
        f"the validation loss after step {step} is {loss}, no number: the weights have diverged; earlier checkpoints "
        "are good: lower learning_rate, or lengthen warmup_steps, and start again",
    )
