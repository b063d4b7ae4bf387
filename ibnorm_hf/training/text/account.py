# SPDX-License-Identifier: Apache-2.0
"""What a preparation made of the text: whether it is enough, and the `data.json` that says it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ...common.corpus import corpus_label, corpus_sources
from ...common.errors import UserError
from ...common.paths import sync_folder, write_json
from ..keys.arguments import DataArguments
from .blocks import BlockWriter, blocks_sha256, load_blocks
from .packing import Packer
from .sources.base import Source

FORMAT = 2  # of data.json: 2 since a document ends once; blocks without it are those of an earlier version
# What is too long for a block, by its key in data.json.
_SHORTENED = {
    "prompts_shortened": "data: kept the last {room} tokens of {count:,} prompts that are longer",
    "conversations_shortened": "data: kept the first {block} tokens of {count:,} conversations that are longer",
    "conversations_left_out": "data: left out {count:,} conversations in whose first {block} tokens the assistant says "
    "nothing",
}


def require_enough(work: Packer, data: DataArguments, source: Source) -> None:
    """Refuse less than a block of training or of validation text, with what would help.

    Raises:
        UserError: one of them is missing.
    """
    name = corpus_label(data.corpus)
    if work.train.text_tokens == 0 and work.validation.text_tokens == 0:
        bad = source.bad.describe()
        what = f" ({bad['count']} unreadable records, first {', '.join(bad['first'])})" if bad["count"] else ""
        left_out = work.shortened["conversations_left_out"]
        what += f" ({left_out} conversations are too long for block_size {data.block_size})" if left_out else ""
        raise UserError(f"corpus '{name}' holds no text{what}")
    advice = {"training": "lower validation_fraction", "validation": "raise validation_fraction"}
    whole = work.train.text_tokens + work.validation.text_tokens
    for part, which in ((work.train, "training"), (work.validation, "validation")):
        if part.shards:
            continue
        if data.held_out is None:
            own = "validation_corpus" if data.validation_corpus else "validation_split"
            text = f"{own} '{corpus_label(data.validation_corpus or data.validation_split)}'"
            raise UserError(
                f"{text if which == 'validation' else f'corpus {name!r}'} is too small: it has {part.pending_tokens} "
                f"tokens, fewer than one block of {data.block_size}; lower block_size or give more text"
            )
        # Another share helps only where there is enough for a block on either side.
        shift = f", {advice[which]}" if whole >= 2 * data.block_size else ""
        raise UserError(
            f"corpus '{name}' is too small: its {which} part has {part.pending_tokens} tokens, fewer than "
            f"one block of {data.block_size}; lower block_size{shift} or give more text"
        )


def finish(work: Packer, source: Source, validation: Source | None, folder: Path, key: dict[str, Any]) -> None:
    """Write `data.json`, put the blocks in their place, and say what was made."""
    description: dict[str, Any] = {
        "format": FORMAT,
        "corpus": _with_counts(source.describe(), work.taken["corpus"]),
        "fingerprints": {"source": key["source"], "tokenizer": key["tokenizer"], "blocks": folder.name},
        "key": key,
        "documents": work.documents,
        "bad_records": source.bad.describe(),
        "train": _part(work.train),
        "validation": _part(work.validation),
    }
    if "validation_corpus" in key and validation is not None:
        description["fingerprints"]["validation_corpus"] = key["validation_corpus"]
        counts = work.taken["validation_corpus"]
        description["validation_corpus"] = _with_counts(validation.describe(), counts)
        description["validation_corpus"]["bad_records"] = validation.bad.describe()
    description |= {name: work.shortened[name] for name in _shortened(work.data)}
    blocks = load_blocks(work.folder, work.validation.shards)
    description["validation"]["sha256"] = blocks_sha256(blocks)
    del blocks
    write_json(work.folder / "data.json", description)
    work.progress.unlink(missing_ok=True)
    os.replace(work.folder, folder)
    sync_folder(folder.parent)
    for line in _lines(work, description):
        work.say(line)


def _shortened(data: DataArguments) -> list[str]:
    """Which counts of texts that are too long there are."""
    kinds = [*(["prompts"] if data.prompt_column else []), *(["conversations"] if data.messages_column else [])]
    return [name for name in _SHORTENED if name.startswith(tuple(kinds))] if kinds else []


def _part(writer: BlockWriter) -> dict[str, Any]:
    blocks = sum(shard["blocks"] for shard in writer.shards)
    return {
        "blocks": blocks,
        "tokens": blocks * writer.block_size,
        "bytes_per_token": writer.text_bytes / max(1, writer.text_tokens),
        "shards": writer.shards,
    }


def _with_counts(description: dict[str, Any], taken: list[dict[str, int]]) -> dict[str, Any]:
    """The description of a list or mixture with what was taken of each source."""
    if not taken:
        return description
    sources = [{**one, **counts} for one, counts in zip(description["sources"], taken, strict=True)]
    return {**description, "sources": sources}


def _lines(work: Packer, description: dict[str, Any]) -> list[str]:
    lines = []
    own = description.get("validation_corpus", {})
    for one in [*corpus_sources(description["corpus"]), *corpus_sources(own)]:
        if left_out := one.get("left_out"):
            names = ", ".join(left_out["first"])
            lines.append(f"data: left out {left_out['count']} files of no known ending, first {names}")
    for bad in (description["bad_records"], own.get("bad_records", {"count": 0})):
        if bad["count"]:
            lines.append(f"data: skipped {bad['count']} unreadable records, first {', '.join(bad['first'])}")
    for name, sentence in _SHORTENED.items():
        if count := work.shortened[name]:
            block = work.train.block_size
            lines.append(sentence.format(count=count, block=f"{block:,}", room=f"{block - 2:,}"))
    lines += _source_lines(description["corpus"])
    train, validation = description["train"], description["validation"]
    return [
        *lines,
        f"data: {train['tokens']:,} training and {validation['tokens']:,} validation tokens, "
        f"{train['bytes_per_token']:.2f} bytes a token, {time.monotonic() - work.started:.0f} s",
    ]


def _source_lines(corpus: dict[str, Any]) -> list[str]:
    """What was taken of each source, and which one's end was the end of a mixture."""
    sources = corpus.get("sources", [])
    whole = sum(one["training_tokens"] for one in sources)
    lines = []
    for one in sources:
        share = f" = {one['training_tokens'] / max(1, whole):.2%}, {one['share']:.2%} asked" if "share" in one else ""
        times = f", read {one['passes']} times to its end" if one["passes"] > 1 else ""
        nothing = ", which holds no text" if not one["documents"] else ""
        lines.append(
            f"data: {one['name']}{nothing}: {one['documents']:,} documents, {one['training_tokens']:,} training "
            f"tokens{share}{times}"
        )
    ended = [one["name"] for one in sources if one["passes"]]
    if corpus.get("stopping_strategy") == "first_exhausted" and ended:
        lines.append(
            f"data: {ended[0]} has run out, and the mixture ends there; corpus_stopping_strategy all_exhausted reads "
            "it again"
        )
    return lines
