# SPDX-License-Identifier: Apache-2.0
"""The order of the samples: a function of seed and step only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class SampleOrder(Sampler[int]):
    """Block ids of exactly ``steps`` steps of ``batch`` blocks: seeded permutations, one after another.

    Permutation e depends on (seed, e) alone: it neither reads nor moves a global generator, and knows
    nothing of processes or micro-batches. A step that begins in one permutation may end in the next, so
    every step has the same number of tokens.
    """

    def __init__(self, blocks: int, *, seed: int, steps: int, batch: int) -> None:
        self.blocks, self.seed, self.steps, self.batch = blocks, seed, steps, batch
        self._held: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        return self._slice(0, len(self))

    def ids(self, step: int) -> list[int]:
        """The block ids of step ``step`` (counted from 1), over all processes and micro-batches."""
        return list(self._slice((step - 1) * self.batch, step * self.batch))

    def range(self, first: int, last: int) -> Iterator[int]:
        """The block ids of steps ``first`` to ``last``, both included."""
        return self._slice((first - 1) * self.batch, last * self.batch)

    def _slice(self, start: int, stop: int) -> Iterator[int]:
        while start < stop:
            epoch, offset = divmod(start, self.blocks)
            # Pieces, as a list of all ids of a large corpus would take hundreds of megabytes.
            end = min(self.blocks, offset + stop - start, offset + 65536)
            yield from self._permutation(epoch)[offset:end].tolist()
            start += end - offset

    def _permutation(self, epoch: int) -> torch.Tensor:
        if self._held is None or self._held[0] != epoch:
            mixed = hashlib.sha256(f"{self.seed}:{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(mixed[:8], "little") >> 1)
            self._held = (epoch, torch.randperm(self.blocks, generator=generator))
        return self._held[1]
