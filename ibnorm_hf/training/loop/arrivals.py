# SPDX-License-Identifier: Apache-2.0
"""What has arrived at the model: which samples, holding what, of how many tokens. Measured, not derived.

A sample's mark, its place in the data set and a checksum of its content, is made where the sample is read and travels
in the batch. Marks stay on the device until somebody asks, so that a step waits for none of this.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .order import SampleOrder

_MARK = "_mark"


class Marked(Dataset[dict[str, Any]]):
    """A map-style data set whose rows know their place and a checksum of what they hold."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _marked(self.rows[index], index)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [_marked(row, index) for row, index in zip(read_rows(self.rows, indices), indices, strict=True)]


def read_rows(data: Any, indices: list[int]) -> list[dict[str, Any]]:
    """Rows of a map-style data set, at once where it can do so."""
    return data.__getitems__(indices) if hasattr(data, "__getitems__") else [data[i] for i in indices]


def _marked(row: dict[str, Any], index: int) -> dict[str, Any]:
    checksum = 0
    for name in sorted(row):
        checksum = zlib.crc32(np.ascontiguousarray(row[name]).tobytes(), checksum)
    return {**row, _MARK: index << 32 | checksum}


class MarkingCollator:
    """An objective's ``collate``, with the rows' marks in the batch."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        marks = torch.tensor([row[_MARK] for row in rows])
        return {**self.objective.collate(rows), _MARK: marks}


class Arrivals:
    """Marks and counts of the samples that have arrived, over all processes.

    Args:
        order: the order that they should arrive in.

    Attributes:
        units, targets: tokens (or images) and predicted targets since step 0, up to the last ``settle``; targets
            are None in a run that was begun by a version that did not count them.
    """

    def __init__(self, order: SampleOrder) -> None:
        self.order = order
        self.units = 0
        self.targets: int | None = 0
        self._marks: list[int] = []  # settled, in the order of one process, since the last `digest`
        self._fresh: list[Tensor] = []
        self._units = 0
        self._targets: list[Tensor] = []

    def take(self, batch: dict[str, Tensor], objective: Any) -> dict[str, Tensor]:
        """Note a micro-batch on its device, and return it without its marks."""
        marks = batch.get(_MARK)
        if marks is None:
            raise RuntimeError("a batch arrived without its samples' marks: transformers no longer collates as it did")
        self._fresh.append(marks)
        batch = {name: value for name, value in batch.items() if name != _MARK}
        units, targets = objective.count(batch)
        self._units += units
        self._targets.append(targets)
        return batch

    def settle(self, accelerator: Any, step: int) -> None:
        """Fetch what arrived up to the end of ``step``; all processes call this.

        Raises:
            RuntimeError: other samples have arrived than the order names.
        """
        if not self._fresh:
            return
        world, count = accelerator.num_processes, len(self._fresh)
        marks, counts = torch.stack(self._fresh), torch.stack(self._targets).sum()[None]
        if world > 1:
            marks, counts = accelerator.gather(marks), accelerator.gather(counts)
        # Micro-batch k of process r is number k x processes + r of one process.
        arrived: list[int] = marks.reshape(world, count, -1).transpose(0, 1).flatten().tolist()
        steps = len(arrived) // self.order.batch
        wanted = list(self.order.range(step - steps + 1, step))
        if [mark >> 32 for mark in arrived] != wanted:
            raise RuntimeError(
                f"other samples arrived in steps {step - steps + 1} to {step} than their order names: "
                "transformers no longer asks for the order of samples as it did"
            )
        self._marks += arrived
        self.units += self._units * world
        if self.targets is not None:
            self.targets += int(counts.sum())
        self._fresh, self._targets, self._units = [], [], 0

    def digest(self) -> str:
        """Hex SHA-256 of the samples since the last call: their places and contents, in order."""
        checksum = hashlib.sha256()
        for mark in self._marks:
            checksum.update(mark.to_bytes(8, "little"))
        self._marks = []
        return checksum.hexdigest()

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint, after ``settle``."""
        return {"marks": self._marks, "units": self.units, "targets": self.targets}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's ``state``."""
        marks: Iterable[Any] = state["marks"]
        self._marks = [int(mark) for mark in marks]
        self.units = int(state["units"])
        self.targets = int(state["targets"]) if state.get("targets") is not None else None
