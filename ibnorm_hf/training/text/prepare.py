# SPDX-License-Identifier: Apache-2.0
"""Corpus -> tokenizer -> packed blocks on disk, made once and reused by every run with the same key."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from filelock import FileLock

from ...common.errors import UserError
from ...common.paths import cache_root, digest, sync_folder, write_json
from ...common.vocabulary import largest_id
from ..keys.arguments import DataArguments
from .blocks import BlockWriter, blocks_sha256, load_blocks
from .held_out import HeldOut
from .packing import Packer, Say
from .sources.base import Source
from .sources.registry import open_source
from .tidy import tidy_cache
from .tokenizer import fingerprint, get_tokenizer

FORMAT = 2  # of data.json: 2 since a document ends once; blocks without it are those of an earlier version


@dataclass
class PreparedData:
    """Blocks to train and validate on, their tokenizer, and the description that goes into data.json."""

    train: Dataset
    validation: Dataset
    tokenizer: Any
    description: dict[str, Any]
    folder: Path


def prepare_data(
    data: DataArguments,
    *,
    vocab_size: int,
    run_tokens: int,
    say: Say = print,
    check: bool = True,
    recorded: dict[str, Any] | None = None,
) -> PreparedData:
    """Prepare, or find in the cache, the blocks of a recipe.

    Args:
        data: the recipe's data keys.
        vocab_size: rows of the model's embedding; a larger tokenizer is refused.
        run_tokens: tokens the run will consume, the default budget of a data set on the Hub.
        say: receives a line of progress now and then.
        check: compare every shard with its SHA-256 (about a second a gigabyte) and not with its size alone.
        recorded: the fingerprints in the checkpoint that is gone on from. Where an earlier version made its blocks,
            they are used on: it cut other blocks from the same text.

    Raises:
        UserError: the corpus is absent, empty, too small, damaged, or the tokenizer does not fit.
    """
    if data.corpus == "embedded":
        say("data: reading the docstrings of the installed packages (about 20 s the first time)")
    tidy_cache(say)
    data = _as_begun(data, recorded)
    source = open_source(data)
    mark = source.fingerprint()
    budget = data.token_budget
    if budget is None and source.endless:
        budget = run_tokens
    cut = {
        "block_size": data.block_size,
        "token_budget": budget,
        "validation_fraction": None if data.validation_split else data.validation_fraction,
        "validation_tokens": data.validation_tokens,
        "validation_split": data.validation_split,
    }
    if recorded and (earlier := _earlier(data, vocab_size, recorded, cut, check)):
        say("data: an earlier version made the blocks of this run; they are used on")
        return earlier
    tokenizer = get_tokenizer(data, vocab_size, _tokenizer_mark(data, mark), _training_texts(data))
    key_parts = {
        "version": _version(source, tokenizer),
        "source": mark,
        "tokenizer": fingerprint(tokenizer),
        **cut,
    }
    folder = cache_root() / "blocks" / digest(key_parts)[:24]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A lock rather than a barrier: other processes of the same launch wait here for hours if they must,
    # where a collective operation would time out.
    with FileLock(str(folder) + ".lock"):
        if not (folder / "data.json").is_file():
            _materialize(source, tokenizer, folder, key_parts, data, say)
    return _load(folder, tokenizer, check)


def _as_begun(data: DataArguments, recorded: dict[str, Any] | None) -> DataArguments:
    """The keys with the commit that a run was begun with: the Hub may have moved on since."""
    try:
        found = cache_root() / "blocks" / Path(str((recorded or {})["blocks"])).name / "data.json"
        corpus = json.loads(found.read_text(encoding="utf-8"))["corpus"]
        named = (corpus["name"], corpus["revision"]) == (data.corpus, data.corpus_revision)
        return replace(data, corpus_revision=corpus["commit"]) if named and corpus["commit"] else data
    except (OSError, ValueError, KeyError, TypeError):
        return data


def _earlier(
    data: DataArguments, vocab_size: int, recorded: dict[str, Any], cut: dict[str, Any], check: bool
) -> PreparedData | None:
    """The recorded blocks, if an earlier version made them by the same keys and they are still there."""
    folder = cache_root() / "blocks" / Path(str(recorded.get("blocks"))).name
    try:
        description = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        same = (
            description["fingerprints"] == recorded
            and cut.items() >= {name: value for name, value in description["key"].items() if name in cut}.items()
        )
        if not same or description.get("format", 1) >= FORMAT:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    tokenizer = get_tokenizer(data, vocab_size, _tokenizer_mark(data, recorded["source"]), _training_texts(data))
    return _load(folder, tokenizer, check) if fingerprint(tokenizer) == recorded["tokenizer"] else None


def _version(source: Source, tokenizer: Any) -> int:
    """Raised where the same inputs would give other blocks than in an earlier version, and nowhere else."""
    wrapped = len(tokenizer) <= 1 << 16 <= largest_id(tokenizer)  # ids that were once stored in too few bits
    return max(source.version, 2 if wrapped else 1)


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


def _materialize(
    source: Source, tokenizer: Any, folder: Path, key: dict[str, Any], data: DataArguments, say: Say
) -> None:
    validation = source.validation()
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    budget = key["token_budget"]
    work = Packer(partial, tokenizer, data, budget, say)
    size = (budget or 0) * work.train.dtype.itemsize / 1e6
    upto = f"at most {budget:,} tokens ({size:,.0f} MB on disk)" if budget else "the whole corpus"
    say(f"data: packing {upto} of '{data.corpus}' into blocks of {data.block_size} in {cache_root()}")
    if validation is not None:
        work.read(source, HeldOut(None, None), only=work.train)
        work.read(validation, HeldOut(None, None), only=work.validation)
    else:
        work.read(source, HeldOut(data.validation_fraction, source.size_hint()))
    work.train.flush()
    work.validation.flush()
    _check_enough(work, data, source)
    _finish(work, source, folder, key, say)


def _check_enough(work: Packer, data: DataArguments, source: Source) -> None:
    if work.train.text_tokens == 0 and work.validation.text_tokens == 0:
        bad = source.bad.describe()
        what = f" ({bad['count']} unreadable records, first {', '.join(bad['first'])})" if bad["count"] else ""
        raise UserError(f"corpus '{data.corpus}' holds no text{what}")
    advice = {"training": "lower validation_fraction", "validation": "raise validation_fraction"}
    whole = work.train.text_tokens + work.validation.text_tokens
    for part, name in ((work.train, "training"), (work.validation, "validation")):
        if not part.shards:
            # Another share helps only where there is enough for a block on either side.
            shift = f", {advice[name]}" if whole >= 2 * data.block_size else ""
            raise UserError(
                f"corpus '{data.corpus}' is too small: its {name} part has {part.pending_tokens} tokens, fewer than "
                f"one block of {data.block_size}; lower block_size{shift} or give more text"
            )


def _finish(work: Packer, source: Source, folder: Path, key: dict[str, Any], say: Say) -> None:
    def part(writer: BlockWriter) -> dict[str, Any]:
        blocks = sum(shard["blocks"] for shard in writer.shards)
        return {
            "blocks": blocks,
            "tokens": blocks * writer.block_size,
            "bytes_per_token": writer.text_bytes / max(1, writer.text_tokens),
            "shards": writer.shards,
        }

    description: dict[str, Any] = {
        "format": FORMAT,
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
    if left_out := description["corpus"].get("left_out"):
        say(f"data: left out {left_out['count']} files of no known ending, first {', '.join(left_out['first'])}")
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
