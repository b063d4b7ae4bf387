# SPDX-License-Identifier: Apache-2.0
"""A classifier tried on images without content, on the meta device: what its backward keeps, and what it refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import UserError
from ...common.private_torch import storage_of
from ...modeling.batch_norms import BatchAreaNorm
from ...modeling.sync_norms import IBSyncBatchNorm2d
from .image_build import ImageFacts


def try_step(model: Any, facts: ImageFacts, run: Any, *, joint: bool) -> int:
    """Bytes that a micro-batch of this model keeps for its backward; 0 where the meta device cannot tell.

    Args:
        model: on the meta device.
        run: the recipe's run arguments.
        joint: whether batch statistics are those of all processes.

    Raises:
        UserError: the model cannot compute its activations again, or a batch statistic would be that of one value.
    """
    micro = run.per_device_train_batch_size
    if getattr(run, "activation_checkpointing", None) or run.gradient_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise UserError(
                f"key activation_checkpointing: {model.config.model_type} cannot compute its activations again; leave "
                "it out, and lower per_device_train_batch_size where memory is short"
            )
        _switch_on(model)
    few = 1 if micro == 1 and not joint else 2
    try:
        kept = _kept_bytes(model, facts, few)
        if micro > few:  # numbers a channel come on top of those that every image adds
            kept += (micro - few) * (_kept_bytes(model, facts, few + 2) - kept) // 2
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"key per_device_train_batch_size: with {micro}, a batch statistic would be that of one value (an image of "
            f"{facts.height} x {facts.width} ends as one pixel); give at least 2, or larger images"
        ) from None
    except (RuntimeError, NotImplementedError):
        return 0
    return kept // (2 if run.bf16 or run.fp16 else 1)


def _switch_on(model: Any) -> None:
    # The name changed within version 5.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def _kept_bytes(model: Any, facts: ImageFacts, images: int) -> int:
    own = {storage_of(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[storage_of(tensor)] = tensor
        return tensor

    was_training = model.training
    model.train()
    pixels = torch.empty(images, facts.channels, facts.height, facts.width, device="meta")
    labels = torch.zeros(images, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(pixel_values=pixels, labels=labels)
    model.train(was_training)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def require_joint_statistics(model: nn.Module, device: str) -> None:
    """Raise UserError unless every norm over a batch computes over all processes, as ``sync_batch_norm`` asks."""
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, nn.SyncBatchNorm) and device == "cpu":
            raise UserError(
                "key sync_batch_norm: torch synchronizes its BatchNorm on GPUs alone; leave the key out on CPUs, or "
                "take a norm_type ibnorm-*, which is synchronized everywhere"
            )
        alone = isinstance(module, BatchAreaNorm) and not isinstance(module, IBSyncBatchNorm2d)
        other = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        if alone or other:
            raise UserError(
                f"key sync_batch_norm: {name} is computed over each process's own batch and cannot be synchronized; "
                "leave the key out, or take a norm_type ibnorm-*"
            )
