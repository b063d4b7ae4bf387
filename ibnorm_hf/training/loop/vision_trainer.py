# SPDX-License-Identifier: Apache-2.0
"""The trainer of classifiers: that of pretraining, with images for blocks and accuracy for perplexity."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.image_build import Views
from .callbacks import RunLog
from .trainer import PretrainTrainer


def collate_images(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Images -> (batch, C, H, W) uint8 pixel_values and (batch,) int64 labels."""
    labels = torch.tensor([int(row["labels"]) for row in rows])
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}


class VisionTrainer(PretrainTrainer):
    """``PretrainTrainer`` for images: the same order, decay groups, resume and checkpoints.

    Images are augmented a micro-batch at a time, on the device, from a generator named by seed, step, micro-batch and
    process: a resumed run sees the same crops.
    """

    def __init__(self, *, model: nn.Module, args: Any, train: Any, validation: Any, views: Views) -> None:
        super().__init__(model=model, args=args, train=train, validation=validation, tokenizer=None)
        self.data_collator = collate_images
        # Their loss is the mean of a micro-batch whatever they are told of the whole batch, and Trainer, believing the
        # signature, would add micro-batches and processes up instead of averaging them.
        self.model_accepts_loss_kwargs = False
        self.views = views

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch of augmented images."""
        inputs = self._prepare_inputs(inputs)
        micro = len(self._pending) % self.args.gradient_accumulation_steps
        draw = f"{self.args.seed}:{self.state.global_step}:{micro}:{self.args.process_index}"
        inputs["pixel_values"] = self.views.train(inputs["pixel_values"], draw)
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Mean loss (nats an image), top-1 and top-5 over all validation images, in eval mode."""
        scores = self.image_scores(self.eval_dataset if eval_dataset is None else eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def image_scores(self, images: Any) -> dict[str, float]:
        """loss, top1, top5 and the number of images; the same for every batch size and number of processes."""
        totals = torch.zeros(4, dtype=torch.float64, device=self.args.device)
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        for indices, weight in self.validation_batches(len(images)):
            batch = self._prepare_inputs(collate_images([images[i] for i in indices]))
            with self.accelerator.autocast():
                logits = model(pixel_values=self.views.evaluate(batch["pixel_values"])).logits
            labels = batch["labels"]
            nats = F.cross_entropy(logits.double(), labels, reduction="none")
            hits = logits.topk(min(5, logits.shape[-1]), -1).indices == labels[:, None]
            rows = torch.stack((nats, hits[:, 0].double(), hits.any(-1).double(), torch.ones_like(nats)))
            totals += (rows * weight).sum(-1)
        model.train(was_training)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        loss, top1, top5 = (totals[:3] / totals[3]).tolist()
        return {"loss": loss, "top1": top1, "top5": top5, "images": int(totals[3].item())}


class VisionLog(RunLog):
    """``RunLog`` whose lines count images, and whose validation lines hold accuracy."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            line = {"step": state.global_step} | {k: logs[k] for k in ("eval_loss", "eval_top1", "eval_top5")}
            text = f"step {state.global_step}  validation loss {line['eval_loss']:.4f}  top-1 {line['eval_top1']:.4f}"
        elif "loss" in logs:
            line = self._training_line(state, logs)
            line["images"], line["images_per_s"] = line.pop("tokens"), line.pop("tokens_per_s")
            text = f"step {line['step']}/{state.max_steps}  loss {line['loss']:.4f}  lr {line['lr']:.2e}"
            text += f"  {line['images_per_s']:,.0f} images/s"
        else:
            return
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        self._say(text)
