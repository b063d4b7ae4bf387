# SPDX-License-Identifier: Apache-2.0
"""What the norms give during training, in three numbers each: off unless ``record_shapes`` asks for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...common.shape import effective_rank, kurtosis, spread
from ...modeling.recognize import iter_norms

_ROWS = 512  # of a micro-batch, evenly spaced: no random number is drawn, so that training stays what it is


class LayerShapes:
    """Kurtosis, effective rank and spread of what each norm gives, measured on the steps that are logged.

    The last micro-batch of the step counts, at most 512 of its positions (of images all channels of a pixel make one).
    The hooks only read.
    """

    def __init__(self, model: nn.Module) -> None:
        self.active = False
        self._found: dict[str, dict[str, float]] = {}
        for name, modules in iter_norms(model):
            for module in modules:
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def measure(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self.active and module.training and isinstance(output, Tensor):
                rows = positions(output.detach())
                self._found[name] = {f.__name__: round(f(rows), 6) for f in (kurtosis, effective_rank, spread)}

        return measure

    def read(self) -> dict[str, dict[str, float]]:
        """By module name, what was measured since the last call; what is no number is left out."""
        found = {
            name: {key: value for key, value in numbers.items() if value == value and abs(value) != float("inf")}
            for name, numbers in self._found.items()
        }
        self._found.clear()
        return found


def positions(values: Tensor) -> Tensor:
    """(..., width) or (N, C, H, W) as at most 512 rows, float32, evenly spaced."""
    rows = values.movedim(1, -1) if values.ndim == 4 else values
    rows = rows.reshape(-1, rows.shape[-1])
    step = max(1, -(-len(rows) // _ROWS))
    return rows[::step].to("cpu", torch.float32)
