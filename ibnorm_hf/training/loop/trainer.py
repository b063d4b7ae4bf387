# SPDX-License-Identifier: Apache-2.0
"""Transformers' Trainer with four differences: the order of samples, decay groups, validation, checkpoints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from ...common.errors import UserError
from ...common.packed import COLUMN, IGNORED, unpack
from ...common.paths import sync_file
from ..folder.manifest import SAVING, keep_last, publish, remove_folder, seal
from ..model.trained_part import is_adapter, load_adapter
from .callbacks import GradientGuard, diverged
from .decay import decay_groups
from .order import SampleOrder
from .sharded import full_optimizer_state, is_sharded, load_full_model, load_full_optimizer

OWN_STATE = "ibnorm_state.json"


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Blocks -> (batch, block_size) int64 input_ids, and labels as `unpack` gives them."""
    ids, labels = unpack(np.stack([row[COLUMN] for row in rows]))
    return {"input_ids": ids, "labels": labels}


class PretrainTrainer(Trainer):
    """Trainer for packed blocks.

    - samples: exactly `max_steps` steps in the order of `SampleOrder`, whatever the number of processes;
    - weight decay: groups by module class (`decay_groups`);
    - validation: loss per token in eval mode, the same for every batch size and number of processes;
    - checkpoints: written aside, sealed by a manifest, moved into place; no pickled arguments.
    """

    def __init__(self, *, model: nn.Module, args: Any, train: Dataset, validation: Dataset, tokenizer: Any) -> None:
        self.order = SampleOrder(len(train), seed=args.seed, steps=args.max_steps, batch=self._batch_of(args))
        self.keep = args.save_total_limit
        args.save_total_limit = None  # Trainer would delete the old checkpoint before the new one is sealed
        args.remove_unused_columns = False
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=collate,
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.facts: dict[str, Any] = {}  # kept in every manifest
        self.guard = GradientGuard(self.order, args.grad_spike_factor)
        self._pending: list[Tensor] = []

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
        """One micro-batch; stops the run when the loss is no number, before it can reach the weights."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise diverged("loss", self._next_step, self.order)
        self._pending.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # The loss scaling of fp16 and DeepSpeed meets infinite gradients on purpose and skips such steps.
        if norm is not None and not (self.args.fp16 or self.is_deepspeed_enabled):
            self.guard.check(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm), self._next_step)
        return norm

    @property
    def _next_step(self) -> int:
        return self.state.global_step + 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace Trainer's running mean by the mean over all steps since the last log.

        Trainer forgets the steps before a checkpoint when it resumes between two logs; here they are kept
        in the checkpoint, so that the logged losses equal those of an uninterrupted run to the last bit.
        """
        if "loss" in logs:
            steps = len(self._pending) // self.args.gradient_accumulation_steps
            total = torch.stack(self._pending).double().sum()
            if self.args.world_size > 1:
                total = self.accelerator.reduce(total, "mean")
            logs["loss"] = total.item() / max(1, steps)
            self._pending.clear()
        super().log(logs, start_time)

    # ---- validation --------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Mean negative log likelihood a predicted token (nats) over all blocks, and its exponential."""
        loss, tokens = self.token_loss(self.eval_dataset if eval_dataset is None else eval_dataset)
        metrics = {
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_perplexity": math.exp(loss) if loss < 700 else float("inf"),
            f"{metric_key_prefix}_tokens": tokens,
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

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
    def token_loss(self, blocks: Dataset) -> tuple[float, int]:
        """(nats a token, tokens): sums over blocks in float64, so batches and processes do not matter."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        for indices, weight in self.validation_batches(len(blocks)):
            ids, labels = (part.to(self.args.device) for part in unpack(blocks[indices][COLUMN]))
            with self.accelerator.autocast():
                logits = model(input_ids=ids, use_cache=False).logits
            for row, targets, w in zip(logits, labels[:, 1:], weight, strict=True):
                nats = F.cross_entropy(row[:-1].float(), targets, reduction="none").double().sum()
                totals += torch.stack((w * nats, w * targets.ne(IGNORED).sum()))
        model.train(was_training)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        return (totals[0] / totals[1]).item(), int(totals[1].item())

    # ---- checkpoints -------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights, config and tokenizer in one layout, sharded or not; no pickled arguments."""
        if self.is_fsdp_enabled:
            # Gathers, so every process takes part; a finished run that is only loaded was never sharded.
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
        run, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        staging = run / SAVING
        if self.args.should_save:
            remove_folder(staging)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            own = self._own_state()
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (staging / name / OWN_STATE).write_text(json.dumps(own), encoding="utf-8")
                sync_file(run / "metrics.jsonl")  # the log up to here must outlive a power cut, as the checkpoint does
                seal(staging / name, {**self.facts, "step": self.state.global_step, "processes": self.args.world_size})
                publish(staging / name, run / name)
                keep_last(run, self.keep)
        finally:
            self.args.output_dir = str(run)
            if self.args.should_save:
                remove_folder(staging)  # on a full disk, half a checkpoint must not keep the room
        self.accelerator.wait_for_everyone()

    def _own_state(self) -> dict[str, Any]:
        """What Trainer forgets: losses since the last log (by process), and the usual size of a gradient."""
        losses = torch.stack(self._pending) if self._pending else torch.zeros(0, device=self.args.device)
        losses = self.accelerator.gather(losses[None]) if self.args.world_size > 1 else losses[None]
        return {
            "losses": losses.tolist(),
            "accumulation": self.args.gradient_accumulation_steps,
            "grad_norms": list(self.guard.norms),
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
        self._pending = [torch.tensor(float(loss), device=self.args.device) for loss in losses]
        self.guard.norms.extend(map(float, own["grad_norms"]))

    def resume(self, checkpoint: Path) -> None:
        """Train on from a verified checkpoint.

        Raises:
            UserError: it cannot be loaded into this run, although its files are what its manifest says.
        """
        with _loading(checkpoint):
            self._restore_own_state(checkpoint)
            TrainerState.load_from_json(os.fspath(checkpoint / "trainer_state.json"))
        self.train(resume_from_checkpoint=os.fspath(checkpoint))

    def load(self, checkpoint: Path) -> None:
        """Take the weights of a verified checkpoint, and nothing else. Raises as `resume` does."""
        self._load_from_checkpoint(os.fspath(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        with _loading(checkpoint):
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
        with _loading(Path(checkpoint)):
            if not self.is_fsdp_enabled:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            load_full_optimizer(self.model, self.optimizer, Path(checkpoint) / "optimizer.pt")
            if self.lr_scheduler is not None:
                state = torch.load(os.path.join(checkpoint, "scheduler.pt"), weights_only=True)
                self.lr_scheduler.load_state_dict(state)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            with _loading(Path(checkpoint)):
                super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with _loading(Path(checkpoint)):
                super()._load_rng_state(checkpoint)

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled and is_sharded(self.model)


@contextmanager
def _loading(checkpoint: Path) -> Iterator[None]:
    """Any failure inside the block is the checkpoint's: its files are as they were written, but not for this run.

    Pickled code ends here as well: what `weights_only` refuses is never executed.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"checkpoint {checkpoint} cannot be loaded into this run: {reason}") from error
