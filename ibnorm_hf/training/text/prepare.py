# SPDX-License-Identifier: Apache-2.0
"""Corpus -> tokenizer -> packed blocks on disk, made once and reused by every run with the same key."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from filelock import FileLock

from ...common.errors import UserError
from ...common.packed import mask
from ...common.paths import cache_root, digest, sync_folder, write_json
from ..keys.arguments import DataArguments
from .blocks import BlockWriter, blocks_sha256, load_blocks
from .encode import Encoder
from .sources import HubSource, Piece, Source, open_source
from .tokenizer import fingerprint, get_tokenizer

SHARD_TOKENS = 8_000_000  # bounds memory, and the work lost when a preparation is killed
BATCH_CHARS = 250_000  # text tokenized at once; a worker needs some 50 times as many bytes
SMALL_CORPUS = 8 << 20  # bytes that one process tokenizes sooner than several have started
_VERSION = 1  # raise it when the same inputs would give other blocks

Say = Callable[[str], None]


@dataclass
class PreparedData:
    """Blocks to train and validate on, their tokenizer, and the description that goes into data.json."""

    train: Dataset
    validation: Dataset
    tokenizer: Any
    description: dict[str, Any]
    folder: Path


class HeldOut:
    """Which pieces are validation: whole runs of consecutive text, spread evenly over the corpus.

    A run is about ``run_chars`` characters; every ``period``-th run is held out. The choice depends on
    the text alone, not on a token budget or a seed.
    """

    def __init__(self, fraction: float | None, size_hint: int | None) -> None:
        self.period = round(1 / fraction) if fraction else 0
        expected = 65536 if size_hint is None or not fraction else int(size_hint * fraction / 16)
        self.run_chars = min(65536, max(256, expected))
        self.run, self.chars = 0, 0

    def take(self, piece: Piece) -> tuple[bool, bool]:
        """(is validation, is the last piece of its run) of the next piece."""
        held = bool(self.period) and self.run % self.period == self.period // 2
        self.chars += piece.chars
        last = bool(self.period) and self.chars >= self.run_chars
        if last:
            self.run, self.chars = self.run + 1, 0
        return held, last


def prepare_data(
    data: DataArguments, *, vocab_size: int, run_tokens: int, say: Say = print, check: bool = True
) -> PreparedData:
    """Prepare, or find in the cache, the blocks of a recipe.

    Args:
        data: the recipe's data keys.
        vocab_size: rows of the model's embedding; a larger tokenizer is refused.
        run_tokens: tokens the run will consume, the default budget of a data set on the Hub.
        say: receives a line of progress now and then.
        check: compare every shard with its SHA-256 (about a second a gigabyte) and not with its size alone.

    Raises:
        UserError: the corpus is absent, empty, too small, damaged, or the tokenizer does not fit.
    """
    if data.corpus == "embedded":
        say("data: reading the docstrings of the installed packages (about 20 s the first time)")
    source = open_source(data)
    mark = source.fingerprint()
    tokenizer = get_tokenizer(data, vocab_size, _tokenizer_mark(data, mark), _training_texts(data))
    budget = data.token_budget
    if budget is None and isinstance(source, HubSource):
        budget = run_tokens
    key_parts = {
        "version": _VERSION,
        "source": mark,
        "tokenizer": fingerprint(tokenizer),
        "block_size": data.block_size,
        "token_budget": budget,
        "validation_fraction": None if data.validation_split else data.validation_fraction,
        "validation_tokens": data.validation_tokens,
        "validation_split": data.validation_split,
    }
    folder = cache_root() / "blocks" / digest(key_parts)[:24]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A lock rather than a barrier: other processes of the same launch wait here for hours if they must,
    # where a collective operation would time out.
    with FileLock(str(folder) + ".lock"):
        if not (folder / "data.json").is_file():
            _materialize(source, tokenizer, folder, key_parts, data, say)
    return _load(folder, tokenizer, check)


def _tokenizer_mark(data: DataArguments, source_mark: str) -> str:
    # The held-out pieces are not read when a tokenizer is trained, so their share is part of its key.
    return digest([source_mark, None if data.validation_split else data.validation_fraction])


def _training_texts(data: DataArguments) -> Iterator[str]:
    source = open_source(data)  # its own, so that bad records are not counted twice
    held_out = HeldOut(None if data.validation_split else data.validation_fraction, source.size_hint())
    for piece, _ in source.pieces():
        if not held_out.take(piece)[0]:
            yield from piece.texts


def _load(folder: Path, tokenizer: Any, check: bool) -> PreparedData:
    try:
        description = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        train = load_blocks(folder, description["train"]["shards"], check=check)
        validation = load_blocks(folder, description["validation"]["shards"], check=check)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"prepared data {folder} is damaged ({error}); delete the folder and start again") from None
    return PreparedData(train, validation, tokenizer, description, folder)


class _Materializer:
    """One pass over a source: tokenize, route to training or validation, write shards, keep progress."""

    def __init__(self, folder: Path, tokenizer: Any, data: DataArguments, budget: int | None, say: Say) -> None:
        self.folder, self.tokenizer, self.say = folder, tokenizer, say
        self.prompts = data.prompt_column is not None
        # Masked tokens are negative.
        dtype = np.dtype("uint16" if len(tokenizer) <= 1 << 16 and not self.prompts else "int32")
        size = data.block_size
        train_blocks = None if budget is None else max(1, budget // size)
        self.workers = data.prepare_workers
        self.train = BlockWriter(folder, "train", size, dtype, train_blocks)
        self.validation = BlockWriter(folder, "validation", size, dtype, data.validation_tokens // size)
        self.progress = folder / "progress.json"
        self.started = self.spoken = time.monotonic()
        self.documents = self.prompts_shortened = 0

    def read(self, source: Source, held_out: HeldOut, only: BlockWriter | None = None) -> None:
        """Read a source to its end or until enough is written. ``only`` sends every piece to one writer."""
        begin = self._restore(source, held_out) if only is not self.validation else None
        shard_blocks = max(1, SHARD_TOKENS // self.train.block_size)
        planned = begin is not None or only is self.validation
        with Encoder(self.tokenizer, self._workers(source)) as encoder:
            for ids, batch in encoder.map(_batches(source, begin)):
                if not planned:
                    self._plan(source, batch, ids, encoder)
                    planned = True
                self._write(batch.pieces, ids, held_out, only)
                self.documents += sum(piece.ends_document for piece in batch.pieces)
                if self.train.pending_blocks >= shard_blocks:
                    self._save(batch, held_out)
                self._report(source)
                if self._enough(held_out, only):
                    source.restore_bad(batch.bad)  # what was read ahead is not part of these blocks
                    break

    def _workers(self, source: Source) -> int:
        if self.workers is not None:
            return self.workers
        size = source.size_hint()
        # A small corpus is done before a worker has started.
        return 1 if size is not None and size < SMALL_CORPUS else min(8, os.cpu_count() or 1)

    def _plan(self, source: Source, batch: _Batch, ids: list[np.ndarray], encoder: Encoder) -> None:
        """Say what is coming, and refuse what the disk cannot hold, before the first byte is written."""
        size, read = source.size_hint(), batch.consumed
        text = sum(piece.chars for piece in batch.pieces)
        tokens = sum(map(len, ids))
        wanted = self.train.max_blocks and self.train.max_blocks * self.train.block_size
        whole = int(tokens * size / read) if size and read else None
        expected = min(filter(None, (wanted, whole)), default=None)
        if expected is None:
            return
        begin = time.perf_counter()
        sample = [text[:4096] for piece in batch.pieces[:16] for text in piece.texts]
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
            held, last = held_out.take(piece)
            writer = only or (self.validation if held else self.train)
            if piece.prompt is not None:
                writer.add(mask(self._shortened(next(rows))), 0)
            tokens = next(rows)
            # A run that ends inside a document ends it too: what follows goes elsewhere.
            if piece.ends_document or last:
                tokens = np.append(tokens, end)
            writer.add(tokens, len(piece.text.encode("utf-8")))

    def _shortened(self, prompt: np.ndarray) -> np.ndarray:
        """The end of a prompt: so much that every block predicts something, whose first token nothing predicts."""
        excess = max(0, len(prompt) - (self.train.block_size - 2))
        self.prompts_shortened += excess > 0
        return prompt[excess:]

    def _enough(self, held_out: HeldOut, only: BlockWriter | None) -> bool:
        if only is not None:
            return only.full
        if not self.train.full:
            return False
        wanted = self.train.blocks // held_out.period if held_out.period else 0
        return self.validation.blocks >= min(self.validation.max_blocks or 1, max(1, wanted))

    def _save(self, batch: _Batch, held_out: HeldOut) -> None:
        self.train.flush()
        self.validation.flush()
        write_json(
            self.progress,
            {
                "source": batch.state,
                "bad": batch.bad,
                "run": [held_out.run, held_out.chars],
                "train": self.train.state(),
                "validation": self.validation.state(),
                "documents": self.documents,
                "prompts_shortened": self.prompts_shortened,
            },
        )

    def _restore(self, source: Source, held_out: HeldOut) -> Any:
        try:
            saved = json.loads(self.progress.read_text(encoding="utf-8"))
            source.restore_bad(saved["bad"])
            held_out.run, held_out.chars = saved["run"]
            self.train.restore(saved["train"])
            self.validation.restore(saved["validation"])
            self.documents, self.prompts_shortened = saved["documents"], saved.get("prompts_shortened", 0)
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


@dataclass
class _Batch:
    """Pieces to tokenize at once, and where the source stands right after them."""

    pieces: list[Piece]
    state: Any
    bad: dict[str, Any]
    consumed: int | None


def _batches(source: Source, begin: Any) -> Iterator[tuple[list[str], _Batch]]:
    held: list[Piece] = []
    size = 0
    state = begin
    for piece, after in source.pieces(begin):
        held.append(piece)
        size += piece.chars
        state = after
        if size >= BATCH_CHARS:
            yield _batch(held, state, source)
            held, size = [], 0
    if held:
        yield _batch(held, state, source)


def _batch(pieces: list[Piece], state: Any, source: Source) -> tuple[list[str], _Batch]:
    # The state is taken now: with several workers the source is read ahead of what is written.
    state = state() if callable(state) else state
    return [text for p in pieces for text in p.texts], _Batch(pieces, state, source.bad_state(), source.consumed())


def _materialize(
    source: Source, tokenizer: Any, folder: Path, key: dict[str, Any], data: DataArguments, say: Say
) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    budget = key["token_budget"]
    work = _Materializer(partial, tokenizer, data, budget, say)
    size = (budget or 0) * work.train.dtype.itemsize / 1e6
    upto = f"at most {budget:,} tokens ({size:,.0f} MB on disk)" if budget else "the whole corpus"
    say(f"data: packing {upto} of '{data.corpus}' into blocks of {data.block_size} in {cache_root()}")
    if data.validation_split:
        if not isinstance(source, HubSource):
            raise UserError("validation_split is for data sets on the Hub; a local corpus uses validation_fraction")
        work.read(source, HeldOut(None, None), only=work.train)
        work.read(HubSource(data, split=data.validation_split), HeldOut(None, None), only=work.validation)
    else:
        work.read(source, HeldOut(data.validation_fraction, source.size_hint()))
    work.train.flush()
    work.validation.flush()
    _check_enough(work, data, source)
    _finish(work, source, folder, key, say)


def _check_enough(work: _Materializer, data: DataArguments, source: Source) -> None:
    if work.train.text_tokens == 0 and work.validation.text_tokens == 0:
        bad = source.bad.describe()["count"]
        raise UserError(f"corpus '{data.corpus}' holds no text{f' ({bad} unreadable records)' if bad else ''}")
    for part, name in ((work.train, "training"), (work.validation, "validation")):
        if not part.shards:
            raise UserError(
                f"corpus '{data.corpus}' is too small: its {name} part has {part.pending_tokens} tokens, fewer than "
                f"one block of {data.block_size}; lower block_size, raise validation_fraction or give more text"
            )


def _finish(work: _Materializer, source: Source, folder: Path, key: dict[str, Any], say: Say) -> None:
    def part(writer: BlockWriter) -> dict[str, Any]:
        blocks = sum(shard["blocks"] for shard in writer.shards)
        return {
            "blocks": blocks,
            "tokens": blocks * writer.block_size,
            "bytes_per_token": writer.text_bytes / max(1, writer.text_tokens),
            "shards": writer.shards,
        }

    description: dict[str, Any] = {
        "corpus": source.describe(),
        "fingerprints": {"source": key["source"], "tokenizer": key["tokenizer"], "blocks": folder.name},
        "key": key,
        "documents": work.documents,
        "bad_records": source.bad.describe(),
        "train": part(work.train),
        "validation": part(work.validation),
    }
    if work.prompts:
        description["prompts_shortened"] = work.prompts_shortened
    validation = load_blocks(work.folder, work.validation.shards)
    description["validation"]["sha256"] = blocks_sha256(validation)
    del validation
    write_json(work.folder / "data.json", description)
    work.progress.unlink(missing_ok=True)
    os.replace(work.folder, folder)
    sync_folder(folder.parent)
    bad = description["bad_records"]
    if bad["count"]:
        say(f"data: skipped {bad['count']} unreadable records, first {', '.join(bad['first'])}")
    if work.prompts_shortened:
        keep = work.train.block_size - 2
        say(f"data: kept the last {keep:,} tokens of {work.prompts_shortened:,} prompts that are longer")
    say(
        f"data: {description['train']['tokens']:,} training and {description['validation']['tokens']:,} validation "
        f"tokens, {description['train']['bytes_per_token']:.2f} bytes a token, "
        f"{time.monotonic() - work.started:.0f} s"
    )
