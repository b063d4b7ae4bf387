# SPDX-License-Identifier: Apache-2.0
"""One pass over a source: tokenize, route to training or validation, write shards, and go on after a kill."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import UserError
from ...common.packed import mask
from ...common.paths import write_json
from ...common.vocabulary import largest_id
from ..keys.arguments import DataArguments
from .batches import Batch, Render, as_it_is, batches
from .blocks import BlockWriter
from .encode import Encoder
from .held_out import HeldOut
from .mixed import mixed
from .sources.base import Piece, Source
from .sources.mixture import Several

SHARD_TOKENS = 8_000_000  # bounds memory, and the work lost when a preparation is killed
SMALL_CORPUS = 8 << 20  # bytes that one process tokenizes sooner than several have started

Say = Callable[[str], None]


class Packer:
    """One pass over a source: tokenize, route to training or validation, write shards, keep progress."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        data: DataArguments,
        budget: int | None,
        say: Say,
        render: Render = as_it_is,
    ) -> None:
        self.folder, self.tokenizer, self.data, self.say, self.render = folder, tokenizer, data, say, render
        # Masked tokens are negative.
        dtype = np.dtype("uint16" if largest_id(tokenizer) < 1 << 16 and not data.masked else "int32")
        size = data.block_size
        train_blocks = None if budget is None else max(1, budget // size)
        self.workers = data.prepare_workers
        self.train = BlockWriter(folder, "train", size, dtype, train_blocks)
        self.validation = BlockWriter(folder, "validation", size, dtype, data.validation_tokens // size)
        self.progress = folder / "progress.json"
        self.started = self.spoken = time.monotonic()
        self.documents, self._part = 0, "corpus"
        self.shortened: Counter[str] = Counter()  # what was too long for a block
        # What was taken of each source of a list or mixture, by the number of the source.
        self.taken: dict[str, list[dict[str, int]]] = {"corpus": [], "validation_corpus": []}

    def read(self, source: Source, held_out: HeldOut, only: BlockWriter | None = None) -> None:
        """Read a source to its end or until enough is written. ``only`` sends every piece to one writer."""
        begin = self._restore(source, held_out) if only is not self.validation else None
        self._part = "validation_corpus" if only is self.validation else "corpus"
        shard_blocks = max(1, SHARD_TOKENS // self.train.block_size)
        if begin is not None and self._enough(held_out, only):
            return
        planned = begin is not None or only is self.validation
        batch = None
        try:
            with Encoder(self.tokenizer, self._workers(source)) as encoder:
                for ids, batch in self._stream(source, encoder, begin, held_out):
                    if not planned:
                        self._plan(source, batch, ids, encoder)
                        planned = True
                    self._write(batch.pieces, ids, held_out, only)
                    if self.train.pending_blocks >= shard_blocks:
                        self._save(batch, held_out)
                    self._report(source)
                    if self._enough(held_out, only):
                        source.bad.restore(batch.bad)  # what was read ahead is not part of these blocks
                        break
        except UserError as error:
            # A stream that broke off: what was read is kept, so that the same command goes on from there.
            if batch is not None and only is not self.validation and error.exit_code == 1:
                self._save(batch, held_out)
            raise
        if batch is not None and only is self.train:
            self._save(batch, held_out)  # reading the validation text may break off, too

    def _stream(
        self, source: Source, encoder: Encoder, begin: Any, held_out: HeldOut
    ) -> Iterator[tuple[list[np.ndarray], Batch]]:
        """Tokens of a source with what they are of, from its state ``begin`` on."""
        if not isinstance(source, Several):
            return encoder.map(batches(source, begin, self.render))
        taken = self.taken[self._part]
        if not taken:
            nothing = {"documents": 0, "training_tokens": 0, "validation_tokens": 0, "passes": 0}
            taken += [dict(nothing) for _ in source.sources]

        def ran_out(number: int, begun_again: bool) -> None:
            taken[number]["passes"] += 1
            if begun_again:
                held_out.restart(number)

        def tokens() -> list[int]:
            return [one["training_tokens"] for one in taken]

        return mixed(source, encoder, begin, self.render, tokens, lambda: self.train.full, ran_out)

    def _workers(self, source: Source) -> int:
        if self.workers is not None:
            return self.workers
        size = source.size_hint()
        # A small corpus is done before a worker has started.
        return 1 if size is not None and size < SMALL_CORPUS else min(8, os.cpu_count() or 1)

    def _plan(self, source: Source, batch: Batch, ids: list[np.ndarray], encoder: Encoder) -> None:
        """Say what is coming, and refuse what the disk cannot hold, before the first byte is written."""
        size, read = source.size_hint(), batch.consumed
        if read is None:
            read = sum(len(text.encode("utf-8")) for piece in batch.pieces for text in piece.texts)
        text = sum(piece.chars for piece in batch.pieces)
        tokens = sum(map(len, ids))
        wanted = self.train.max_blocks and self.train.max_blocks * self.train.block_size
        whole = int(tokens * size / read) if size and read else None
        expected = min(filter(None, (wanted, whole)), default=None)
        if expected is None:
            return
        begin = time.perf_counter()
        sample: list[Any] = [text[:4096] for piece in batch.pieces[:16] for text in piece.texts]
        rate = sum(map(len, encoder(sample))) / (time.perf_counter() - begin)
        need, free = expected * self.train.dtype.itemsize, shutil.disk_usage(self.folder).free
        self.say(
            f"data: plan: about {expected:,} tokens ({text / max(1, tokens):.2f} characters a token), "
            f"{need / 1e6:,.0f} MB on disk ({free / 1e6:,.0f} MB free), about {_duration(expected / rate)} "
            f"by {encoder.workers} worker{'s' if encoder.workers > 1 else ''}"
        )
        if need > free:
            raise UserError(
                f"the packed corpus needs about {need / 1e6:,.0f} MB and {self.folder.parent} has {free / 1e6:,.0f} "
                "free; free some, set IBNORM_CACHE to another disk, or lower token_budget"
            )

    def _write(self, batch: list[Piece], ids: list[np.ndarray], held_out: HeldOut, only: BlockWriter | None) -> None:
        end = self.tokenizer.eos_token_id
        rows = iter(ids)
        for piece in batch:
            held, parted = held_out.take(piece)
            writer = only or (self.validation if held else self.train)
            self.documents += piece.ends_document
            if held and piece.again:
                rows = islice(rows, len(piece.texts), None)  # it is among the validation text already
                continue
            size = len(piece.text.encode("utf-8"))
            parts = []
            if piece.prompt is not None:
                parts.append((mask(self._shortened(next(rows))), 0))
            tokens = next(rows)
            if piece.messages is not None:
                tokens, size = self._conversation(tokens, piece.predicted_bytes or 0)
            # Where a held-out run is cut out of a document, each part ends: what follows in it is not what followed.
            elif piece.ends_document or parted or piece.cut:
                tokens = np.append(tokens, end)
            written = sum(writer.add(*part) for part in [*parts, (tokens, size)])
            if taken := self.taken[self._part]:
                self._count(taken[piece.source], piece, written, writer)

    def _count(self, taken: dict[str, int], piece: Piece, written: int, writer: BlockWriter) -> None:
        taken["documents"] += piece.ends_document
        taken["validation_tokens" if writer is self.validation else "training_tokens"] += written

    def _shortened(self, prompt: np.ndarray) -> np.ndarray:
        """The end of a prompt: so much that every block predicts something, whose first token nothing predicts."""
        excess = max(0, len(prompt) - (self.train.block_size - 2))
        self.shortened["prompts_shortened"] += excess > 0
        return prompt[excess:]

    def _conversation(self, tokens: np.ndarray, size: int) -> tuple[np.ndarray, int]:
        """(tokens, bytes to predict) of a conversation: at most a block, up to the last token of the assistant.

        So every block predicts something: what lies between two targets is shorter than a block. The end of text that
        parts it from the next one is not predicted: how a turn ends is for the template to say.
        """
        room, end = self.train.block_size, self.tokenizer.eos_token_id
        kept = tokens[:room]
        targets = np.flatnonzero(kept >= 0)
        if not len(targets) or targets[0] > room - 3:
            self.shortened["conversations_left_out"] += 1
            return tokens[:0], 0
        if len(targets) < np.count_nonzero(tokens >= 0):
            self.shortened["conversations_shortened"] += 1
            text = self.tokenizer.decode(kept[targets], clean_up_tokenization_spaces=False)
            size = len(text.encode("utf-8"))
        kept = kept[: targets[-1] + 1]
        return (kept if end in kept[-2:] else np.append(kept, mask(np.asarray([end])))), size

    def _enough(self, held_out: HeldOut, only: BlockWriter | None) -> bool:
        if only is not None:
            return only.full
        if not self.train.full:
            return False
        wanted = self.train.blocks // held_out.period if held_out.period else 0
        return self.validation.blocks >= min(self.validation.max_blocks or 1, max(1, wanted))

    def _save(self, batch: Batch, held_out: HeldOut) -> None:
        self.train.flush()
        self.validation.flush()
        write_json(
            self.progress,
            {
                "source": batch.place(),
                "bad": batch.bad,
                "run": held_out.state(),
                "train": self.train.state(),
                "validation": self.validation.state(),
                "documents": self.documents,
                "shortened": self.shortened,
                "taken": self.taken,
            },
        )

    def _restore(self, source: Source, held_out: HeldOut) -> Any:
        try:
            saved = json.loads(self.progress.read_text(encoding="utf-8"))
            source.bad.restore(saved["bad"])
            held_out.restore(saved["run"])
            self.train.restore(saved["train"])
            self.validation.restore(saved["validation"])
            self.documents, self.taken = saved["documents"], saved.get("taken", self.taken)
            # An earlier version counted prompts alone.
            self.shortened = Counter(saved.get("shortened", {"prompts_shortened": saved.get("prompts_shortened", 0)}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        self.say(f"data: resuming a killed preparation after {self.train.blocks:,} blocks")
        return tuple(saved["source"]) if isinstance(saved["source"], list) else saved["source"]

    def _report(self, source: Source) -> None:
        now = time.monotonic()
        if now - self.spoken >= 10:
            self.spoken = now
            tokens = self.train.blocks * self.train.block_size
            size, read = source.size_hint(), source.consumed()
            share = f", {100 * read / size:.0f} % of the corpus read" if size and read else ""
            self.say(f"data: {tokens:,} training tokens packed{share}, {now - self.started:.0f} s")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
