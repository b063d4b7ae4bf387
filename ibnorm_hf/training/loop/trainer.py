# SPDX-License-Identifier: Apache-2.0
"""Transformers' Trainer with four differences: the order of samples, decay groups, validation, checkpoints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from ...common.errors import UserError
from ...common.paths import sync_file
from ...common.private_transformers import one_sequence_a_row
from ..folder.failures import loading
from ..folder.manifest import SAVING, STOPPED_EARLY, keep_last, publish, remove_folder, seal
from ..folder.together import agreed, collect
from ..model.trained_part import is_adapter, load_adapter
from .anneal import AnnealLambda
from .arrivals import Arrivals, Marked, MarkingCollator, read_rows
from .callbacks import GradientGuard, diverged, diverged_validation
from .clock import TrainingClock
from .decay import decay_groups
from .early_stopping import EarlyStopping, early_stopping
from .objective import Objective
from .order import SampleOrder
from .sharded import full_optimizer_state, is_sharded, load_full_model, load_full_optimizer, put_in_pieces

OWN_STATE = "ibnorm_state.json"


class PretrainTrainer(Trainer):
    """Trainer for packed blocks, and for images.

    - samples: exactly `max_steps` steps in the order of `SampleOrder`, whatever the number of processes;
    - weight decay: groups by module class (`decay_groups`);
    - validation: loss per token or image in eval mode, the same for every batch size and number of processes;
    - checkpoints: written aside, sealed by a manifest, moved into place; no pickled arguments.
    """

    def __init__(
        self, *, model: nn.Module, args: Any, train: Any, validation: Any, objective: Objective, processor: Any = None
    ) -> None:
        self.objective: Objective = objective
        self.order = SampleOrder(len(train), seed=args.seed, steps=args.max_steps, batch=self._batch_of(args))
        self.keep = args.save_total_limit
        args.save_total_limit = None  # Trainer would delete the old checkpoint before the new one is sealed
        args.remove_unused_columns = False
        super().__init__(
            model=model,
            args=args,
            train_dataset=Marked(train),
            eval_dataset=validation,
            data_collator=MarkingCollator(objective),
            processing_class=processor,  # saved beside the weights
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not objective.over_the_batch:
            self.model_accepts_loss_kwargs = False
        self.facts: dict[str, Any] = {}  # kept in every manifest
        self.anneal: AnnealLambda | None = None
        self.resumed_from: Path | None = None
        self._scored: tuple[int, dict[str, Any]] | None = None
        self.early = early_stopping(args)
        self.last_step: int = args.max_steps  # of this run: earlier where it stops early
        self.guard = GradientGuard(self.order, args.grad_spike_factor)
        self.arrivals, self.clock = Arrivals(self.order), TrainingClock()
        self._losses: list[Tensor] = []  # of micro-batches, on the device, since the last `_settle`
        self._norms: list[Tensor] = []  # of gradients, alike
        self._pending: list[float] = []  # losses since the last log, settled

    @staticmethod
    def _batch_of(args: Any) -> int:
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)

    def _get_train_sampler(self, train_dataset: Any = None) -> SampleOrder:
        return self.order

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay: decided by module class, equal for every norm."""
        return decay_groups(model).decay

    # ---- losses: exact across a resume -------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch. Nothing here waits for the device."""
        micro = len(self._losses) % self.args.gradient_accumulation_steps
        draw = f"{self.args.seed}:{self.state.global_step}:{micro}:{self.args.process_index}"
        batch = self.arrivals.take(self._prepare_inputs(inputs), self.objective)
        # A compiled model must find everything as it was when it was compiled.
        with nullcontext() if self.args.torch_compile else one_sequence_a_row():
            loss = super().training_step(model, self.objective.train(batch, draw), num_items_in_batch)
        self._losses.append(loss)
        return loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of a step; the time until they are there is time spent waiting for data."""
        with self.clock.waiting():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Nothing: Trainer would count the model's parameters at every micro-batch for a number that nobody reads."""
        return 0

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self._guarded:
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            self._norms.append(torch.as_tensor(norm, device=self.args.device))
        return norm

    @property
    def _guarded(self) -> bool:
        # The loss scaling of fp16 and DeepSpeed meets infinite gradients on purpose and skips such steps.
        return not (self.args.fp16 or self.is_deepspeed_enabled)

    def settle(self) -> None:
        """Fetch and judge what the steps since the last call left on the device; all processes call this together.

        Raises:
            UserError: a loss or gradient was no number, or a gradient spiked; the first such step is named.
            RuntimeError: a private hook of Trainer was not called, so that nothing was judged.
        """
        last, micro = self.state.global_step, self.args.gradient_accumulation_steps
        if not self._losses:
            return
        steps = len(self._losses) // micro
        if self._guarded and len(self._norms) != steps:
            raise RuntimeError("transformers no longer asks for the norm of the gradient as it did: no step was judged")
        losses = torch.stack(self._losses).tolist()
        norms = torch.stack(self._norms).tolist() if self._norms else []
        self._losses, self._norms = [], []
        bad = [last - steps + 1 + i // micro for i, loss in enumerate(losses) if not math.isfinite(loss)]
        first = self._first_of_all(min(bad, default=last + 1))
        for step, norm in enumerate(norms, last - steps + 1):
            if step < first:
                self.guard.check(norm, step)
        if first <= last:
            raise diverged("loss", first, self.order)
        self.arrivals.settle(self.accelerator, last)
        self._pending += losses

    def _first_of_all(self, step: int) -> int:
        """The least of all processes' numbers."""
        if self.args.world_size == 1:
            return step
        return int(self.accelerator.gather(torch.tensor([step], device=self.args.device)).min())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace Trainer's running mean by the mean over all steps since the last log.

        Trainer forgets the steps before a checkpoint when it resumes between two logs; here they are kept
        in the checkpoint, so that the logged losses equal those of an uninterrupted run to the last bit.
        """
        if "loss" in logs:
            self.settle()
            steps = len(self._pending) // self.args.gradient_accumulation_steps
            total = torch.tensor(self._pending, dtype=torch.float64, device=self.args.device).sum()
            if self.args.world_size > 1:
                total = self.accelerator.reduce(total, "mean")
            logs["loss"] = total.item() / max(1, steps)
            self._pending.clear()
        # What is no number (a gradient that fp16 scales down) is null: JSON knows neither nan nor infinity.
        strict = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in logs.items()}
        super().log(strict, start_time)  # type: ignore[arg-type]

    # ---- validation --------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """The objective's scores over all of the validation data, logged."""
        self.settle()
        with self.clock.paused():
            scores = self.scores(self.eval_dataset if eval_dataset is None else eval_dataset)
        self._scored = (self.state.global_step, scores)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        if self.early is not None:
            self._stop_early(self.early, scores["loss"])
            metrics["eval_since_best"] = self.early.since
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if STOPPED_EARLY in self.facts:
            self.control.should_training_stop = True
            self.control.should_save = self.control.should_save or self.args.save_strategy != "no"
        return metrics

    def _stop_early(self, early: EarlyStopping, loss: float) -> None:
        """Judge a validation; one process decides, as the sums of another may be rounded otherwise."""
        step = self.state.global_step
        if agreed(lambda: early.judge(step, loss), main_only=True) and step < self.args.max_steps:
            self.end_as({"step": step, STOPPED_EARLY: agreed(lambda: early.outcome(step), main_only=True)})

    def end_as(self, manifest: dict[str, Any]) -> None:
        """Take over how the run ended, as the manifest of its last checkpoint says it."""
        if STOPPED_EARLY in manifest:
            self.last_step, self.facts[STOPPED_EARLY] = manifest["step"], manifest[STOPPED_EARLY]

    @property
    def last_scores(self) -> dict[str, Any] | None:
        """The scores of the last step, if the training loop has just made them."""
        return self._scored[1] if self._scored is not None and self._scored[0] == self.last_step else None

    def validation_batches(self, count: int) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of this process's share of ``count`` samples: their indices, and a float64 weight of each.

        Process r takes samples r, r + W, ...; where they do not divide, a sample repeats with weight 0, since sharded
        models need every process to run equally often.
        """
        rank, world, size = self.args.process_index, max(1, self.args.world_size), self.args.per_device_eval_batch_size
        share = math.ceil(count / world)
        for start in range(0, share, size):
            indices = [rank + world * k for k in range(start, min(start + size, share))]
            weight = torch.tensor([float(i < count) for i in indices], dtype=torch.float64, device=self.args.device)
            yield [min(i, count - 1) for i in indices], weight

    @torch.no_grad()
    def scores(self, data: Any, rows: int | None = None) -> dict[str, Any]:
        """Scores over a data set, or its first ``rows``: sums in float64, so batches and processes do not matter.

        Raises:
            UserError: the loss is no number.
        """
        totals: Any = 0.0
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        for indices, weight in self.validation_batches(min(rows or len(data), len(data))):
            batch = self._prepare_inputs(self.objective.collate(read_rows(data, indices)))
            with self.accelerator.autocast():
                logits = model(**self.objective.evaluate(batch)).logits
            for row, w in zip(self.objective.sums(logits, batch["labels"]), weight, strict=True):
                totals = totals + w * row
        model.train(was_training)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        scores = self.objective.scores(totals.tolist())
        if not math.isfinite(scores["loss"]):
            raise diverged_validation(scores["loss"], self.state.global_step)
        return scores

    # ---- checkpoints -------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights, config and tokenizer in one layout, sharded or not; no pickled arguments."""
        if self.is_fsdp_enabled:
            # Gathers, so every process takes part; a finished run that is only loaded was never sharded.
            put_in_pieces(self.model)
            weights = self.accelerator.get_state_dict(self.model) if self._is_sharded else None
            if self.args.should_save:
                self._save(output_dir, state_dict=weights)
        else:
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            (folder / "training_args.bin").unlink(missing_ok=True)
            if is_adapter(self.model):
                (folder / "README.md").unlink(missing_ok=True)  # PEFT's form to fill in by hand

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = full_optimizer_state(self.model, self.optimizer)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(state, os.path.join(output_dir, "optimizer.pt"))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, "scheduler.pt"))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.settle()
        with self.clock.paused():
            self._save_sealed(model, trial)

    def _save_sealed(self, model: nn.Module, trial: Any) -> None:
        run, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        staging = run / SAVING
        if self.args.should_save:
            remove_folder(staging)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            own = self._own_state()
            collect(staging / name, "rng_state_*.pth")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (staging / name / OWN_STATE).write_text(json.dumps(own, allow_nan=False), encoding="utf-8")
                sync_file(run / "metrics.jsonl")  # the log up to here must outlive a power cut, as the checkpoint does
                seal(staging / name, {**self.facts, "step": self.state.global_step, "processes": self.args.world_size})
                publish(staging / name, run / name)
                keep_last(run, self.keep, written=self.state.global_step, never=self.resumed_from)
        finally:
            self.args.output_dir = str(run)
            if self.args.should_save:
                remove_folder(staging)  # on a full disk, half a checkpoint must not keep the room
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0:
            remove_folder(staging)  # of a machine with a disk of its own

    def _own_state(self) -> dict[str, Any]:
        """What Trainer forgets: losses since the last log (by process), and the usual size of a gradient."""
        losses = torch.tensor(self._pending, device=self.args.device)
        losses = self.accelerator.gather(losses[None]) if self.args.world_size > 1 else losses[None]
        return {
            "losses": losses.tolist(),
            "accumulation": self.args.gradient_accumulation_steps,
            "grad_norms": list(self.guard.norms),
            "arrivals": self.arrivals.state(),
            **({"early_stopping": self.early.state()} if self.early is not None and self.early.judged >= 0 else {}),
        }

    def _restore_own_state(self, checkpoint: Path) -> None:
        path = checkpoint / OWN_STATE
        if not path.is_file():
            return
        own = json.loads(path.read_text(encoding="utf-8"))
        by_process, mine = own["losses"], self.args.gradient_accumulation_steps
        if len(by_process) == max(1, self.args.world_size) and own["accumulation"] == mine:
            losses = by_process[self.args.process_index if self.args.world_size > 1 else 0]
        else:
            # The step was cut into other micro-batches: the same mean a step, to rounding.
            steps = len(by_process[0]) // own["accumulation"]
            mean = sum(map(sum, by_process)) / len(by_process) / max(1, steps)
            losses = [mean / mine] * (steps * mine)
        self._pending = [float(loss) for loss in losses]
        if "arrivals" in own:
            self.arrivals.load(own["arrivals"])
        else:  # of an earlier version, which counted nothing
            row = self.objective.collate(read_rows(self.eval_dataset, [0]))
            step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
            self.arrivals.load({"marks": [], "units": step * self.order.batch * self.objective.count(row)[0]})
        self.guard.norms.extend(map(float, own["grad_norms"]))
        if self.early is not None and "early_stopping" in own:
            self.early.load(own["early_stopping"])

    def resume(self, checkpoint: Path, *, kept: Path | None = None) -> None:
        """Train on from a verified checkpoint; ``kept`` is where the main process has it, and keeps it.

        Raises:
            UserError: it cannot be loaded into this run, although its files are what its manifest says.
        """
        self.resumed_from = kept or checkpoint
        self.args.eval_on_start = False  # that was before step 1
        with loading(checkpoint):
            self._restore_own_state(checkpoint)
            TrainerState.load_from_json(os.fspath(checkpoint / "trainer_state.json"))
        self.train(resume_from_checkpoint=os.fspath(checkpoint))

    def load(self, checkpoint: Path) -> None:
        """Take the weights of a verified checkpoint, and nothing else. Raises as `resume` does."""
        self._load_from_checkpoint(os.fspath(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        with loading(checkpoint):
            if self.is_deepspeed_enabled:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                return
            if is_adapter(self.model):
                load_adapter(self.model, checkpoint)
                return
            weights = checkpoint / "model.safetensors"
            if not weights.is_file():
                raise UserError(f"checkpoint {checkpoint} holds no model.safetensors")
            load_full_model(self.model if model is None else model, weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with loading(Path(checkpoint)):
            if not self.is_fsdp_enabled:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            load_full_optimizer(self.model, self.optimizer, Path(checkpoint) / "optimizer.pt")
            if self.lr_scheduler is not None:
                state = torch.load(os.path.join(checkpoint, "scheduler.pt"), weights_only=True)
                self.lr_scheduler.load_state_dict(state)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            with loading(Path(checkpoint)):
                super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with loading(Path(checkpoint)):
                super()._load_rng_state(checkpoint)

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled and is_sharded(self.model)
