# SPDX-License-Identifier: Apache-2.0
"""Packed blocks on disk: numbered Arrow shards of fixed-length token sequences, memory-mapped when read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from ...common.errors import UserError
from ...common.packed import COLUMN
from ...common.paths import file_sha256, sync_file, sync_folder


@dataclass
class BlockWriter:
    """Cut a stream of tokens into blocks and write them as shards ``<name>-00000.arrow``.

    Only whole blocks are written. ``state`` and ``restore`` carry everything else (the tokens of the
    unfinished block, the counts, the list of shards), so that writing can go on after a kill.
    """

    folder: Path
    name: str
    block_size: int
    dtype: np.dtype
    max_blocks: int | None = None
    shards: list[dict[str, Any]] = field(default_factory=list)
    text_bytes: int = 0  # UTF-8 bytes of all text to predict, and the tokens they became: together bits per byte
    text_tokens: int = 0
    pending_tokens: int = 0  # held in memory, and not yet written
    _pending: list[np.ndarray] = field(default_factory=list)
    _written_blocks: int = 0

    @property
    def pending_blocks(self) -> int:
        """Whole blocks held in memory."""
        return self.pending_tokens // self.block_size

    @property
    def blocks(self) -> int:
        """Blocks so far, written and held, never more than ``max_blocks``."""
        total = self._written_blocks + self.pending_blocks
        return total if self.max_blocks is None else min(total, self.max_blocks)

    @property
    def full(self) -> bool:
        """Whether ``max_blocks`` is reached."""
        return self.max_blocks is not None and self.blocks >= self.max_blocks

    def add(self, tokens: Sequence[int] | np.ndarray, text_bytes: int) -> int:
        """Append the tokens of a text of ``text_bytes`` bytes; ignored once full. Masked tokens belong to no text.

        Returns how many of them there is room for.
        """
        if self.full or len(tokens) == 0:
            return 0
        before = self._written_blocks * self.block_size + self.pending_tokens
        stored = np.asarray(tokens, dtype=self.dtype)
        self._pending.append(stored)
        self.pending_tokens += len(stored)
        self.text_bytes += text_bytes
        self.text_tokens += int(np.count_nonzero(stored >= 0))
        return len(stored) if self.max_blocks is None else min(len(stored), self.max_blocks * self.block_size - before)

    def flush(self) -> None:
        """Write all whole blocks held as one more shard; no-op without any."""
        room = None if self.max_blocks is None else self.max_blocks - self._written_blocks
        count = self.pending_blocks if room is None else min(self.pending_blocks, room)
        if count <= 0:
            return
        stream = np.concatenate(self._pending)
        rest = stream[count * self.block_size :].copy()
        name = f"{self.name}-{len(self.shards):05d}.arrow"
        path = self.folder / name
        _write_shard(path, stream[: count * self.block_size], self.block_size)
        self.shards.append({"file": name, "blocks": count, "bytes": path.stat().st_size, "sha256": file_sha256(path)})
        self._written_blocks += count
        self._pending, self.pending_tokens = [rest], len(rest)

    def state(self) -> dict[str, Any]:
        """Plain values that `restore` understands; call it right after `flush`."""
        rest = np.concatenate(self._pending).tolist() if self._pending else []
        return {
            "shards": self.shards,
            "rest": rest,
            "written": self._written_blocks,
            "text_bytes": self.text_bytes,
            "text_tokens": self.text_tokens,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; shards that it does not list will be overwritten."""
        self.shards, self._written_blocks = list(state["shards"]), state["written"]
        self.text_bytes, self.text_tokens = state["text_bytes"], state["text_tokens"]
        rest = np.asarray(state["rest"], dtype=self.dtype)
        self._pending, self.pending_tokens = [rest], len(rest)


def _write_shard(path: Path, tokens: np.ndarray, block_size: int) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens), block_size)
    table = pa.table({COLUMN: column})
    with open(path, "wb") as handle, pa.ipc.new_stream(handle, table.schema) as writer:
        # Small record batches: reading one block must not touch megabytes.
        writer.write_table(table, max_chunksize=1024)
    sync_file(path)
    sync_folder(path.parent)


def load_blocks(folder: Path, shards: list[dict[str, Any]], *, check: bool = False) -> Dataset:
    """Memory-map shards as one data set of numpy rows.

    Args:
        folder: where the shards lie.
        shards: their description, as `BlockWriter` made it.
        check: compare the SHA-256 of every shard, not its size alone.

    Raises:
        UserError: a shard is missing or not what was written.
    """
    parts = []
    for shard in shards:
        path = folder / Path(str(shard["file"])).name  # whatever the description says, it is in this folder
        if path.is_symlink() or not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise UserError(f"prepared data {path} is missing or damaged; delete {folder} and start again")
        if check and file_sha256(path) != shard["sha256"]:
            raise UserError(f"prepared data {path} does not match its checksum; delete {folder} and start again")
        parts.append(Dataset.from_file(str(path)))
    return concatenate_datasets(parts).with_format("numpy")


def blocks_sha256(blocks: Dataset) -> str:
    """Hex digest of the tokens of all blocks, as they are stored, independent of how they were sharded."""
    checksum = hashlib.sha256()
    for batch in blocks.iter(batch_size=256):
        checksum.update(np.ascontiguousarray(batch[COLUMN], dtype="<i4").tobytes())
    return checksum.hexdigest()
