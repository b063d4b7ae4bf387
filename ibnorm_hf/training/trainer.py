# SPDX-License-Identifier: Apache-2.0
"""Transformers' Trainer with four differences: the order of samples, decay groups, validation, checkpoints."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .blocks import COLUMN
from .callbacks import diverged
from .decay import decay_groups
from .manifest import keep_last, publish, remove_folder, seal
from .order import SampleOrder

PENDING = "pending_losses.json"


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Blocks -> (batch, block_size) int64 input_ids, and labels equal to them (models shift by themselves)."""
    ids = torch.from_numpy(np.stack([row[COLUMN] for row in rows]).astype(np.int64))
    return {"input_ids": ids, "labels": ids.clone()}


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
            raise diverged("loss", self.state.global_step + 1, self.order)
        self._pending.append(loss)
        return loss

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

    @torch.no_grad()
    def token_loss(self, blocks: Dataset) -> tuple[float, int]:
        """(nats a token, tokens): sums over blocks in float64, so batches and processes do not matter.

        Process r takes blocks r, r + W, ...; where they do not divide, a block repeats with weight 0, since
        sharded models need every process to run equally often.
        """
        rank, world, size = self.args.process_index, max(1, self.args.world_size), self.args.per_device_eval_batch_size
        count = math.ceil(len(blocks) / world)
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        for start in range(0, count, size):
            indices = [rank + world * k for k in range(start, min(start + size, count))]
            batch = blocks[[min(i, len(blocks) - 1) for i in indices]][COLUMN]
            ids = torch.from_numpy(np.asarray(batch).astype(np.int64)).to(self.args.device)
            weight = torch.tensor([float(i < len(blocks)) for i in indices], dtype=torch.float64, device=ids.device)
            with self.accelerator.autocast():
                logits = model(input_ids=ids, use_cache=False).logits
            for row, row_ids, w in zip(logits, ids, weight, strict=True):
                nats = F.cross_entropy(row[:-1].float(), row_ids[1:], reduction="none").double().sum()
                totals += torch.stack((w * nats, w * (len(row_ids) - 1)))
        model.train(was_training)
        if world > 1:
            totals = self.accelerator.reduce(totals, "sum")
        return (totals[0] / totals[1]).item(), int(totals[1].item())

    # ---- checkpoints -------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights, config and tokenizer; the pickled arguments that Trainer adds are removed."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            Path(str(output_dir or self.args.output_dir), "training_args.bin").unlink(missing_ok=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        staging = run / ".saving"
        if self.args.should_save:
            remove_folder(staging)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(run)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            losses = [loss.item() for loss in self._pending]
            (staging / name / PENDING).write_text(json.dumps(losses), encoding="utf-8")
            seal(staging / name, {**self.facts, "step": self.state.global_step, "processes": self.args.world_size})
            publish(staging / name, run / name)
            remove_folder(staging)
            keep_last(run, self.keep)
        self.accelerator.wait_for_everyone()

    def resume(self, checkpoint: Path) -> None:
        """Train on from a verified checkpoint."""
        if (checkpoint / PENDING).is_file():
            losses = json.loads((checkpoint / PENDING).read_text(encoding="utf-8"))
            self._pending = [torch.tensor(loss, device=self.args.device) for loss in losses]
        self.train(resume_from_checkpoint=os.fspath(checkpoint))
