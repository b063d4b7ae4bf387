# SPDX-License-Identifier: Apache-2.0
"""The batch area over all processes of a data-parallel run."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batch_functional import AREA, BatchStatistics, at_least_float32, batch_ib_norm_reference, require_several
from .batch_norms import IBBatchNorm2d


class IBSyncBatchNorm2d(IBBatchNorm2d):
    """``IBBatchNorm2d`` whose training statistics are those of the joint batch of all processes of a group.

    Output, gradients and running statistics equal those of one process with the joint batch; processes may hold
    batches of different sizes. Without a process group, or alone in it, it is ``IBBatchNorm2d``. A training step
    costs four small reductions forward and three backward.
    """

    process_group: Any = None  # None: all processes

    @classmethod
    def convert(cls, model: nn.Module, process_group: Any = None) -> nn.Module:
        """Make every ``IBBatchNorm2d`` of ``model`` a synchronized one, in place; parameters and buffers stay."""
        for module in model.modules():
            if type(module) is IBBatchNorm2d:
                module.__class__ = cls
            if isinstance(module, cls):
                module.process_group = process_group
        return model

    def _normalize_batch(self, x: Tensor) -> tuple[Tensor, BatchStatistics | None]:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1):
            return super()._normalize_batch(x)
        x32 = at_least_float32(x)
        local = x.numel() // self.num_features
        total = torch.full((1,), local, dtype=torch.float64, device=x.device)
        dist.all_reduce(total, group=self.process_group)
        if local <= 1:  # otherwise the sum is more than 1, and reading it would stop a GPU's queue
            if total.item() == 0:
                return super()._normalize_batch(x)
            require_several(int(total.item()), x)
        group, count = self.process_group, total.to(x32.dtype)

        def mean(t: Tensor) -> Tensor:
            return _SumOverProcesses.apply(t.sum(AREA), group) / count

        lam: Any = self._norm_lambda if self.log_lambda is None else self.lambda_(x)
        y, statistics = batch_ib_norm_reference(x32, self.weight, self.bias, self.compression, lam, self.eps, mean)
        return y.to(x.dtype), statistics


class _SumOverProcesses(torch.autograd.Function):
    """All-reduced sum; every process's loss depends on every process's term, so the gradient is a sum as well."""

    @staticmethod
    def forward(values: Tensor, group: Any) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor, None]:
        return _SumOverProcesses.apply(dtotal.contiguous(), ctx.group), None
