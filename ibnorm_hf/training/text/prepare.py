# SPDX-License-Identifier: Apache-2.0
"""Corpus -> tokenizer -> packed blocks on disk, made once and reused by every run with the same key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from filelock import FileLock

from ...common.corpus import corpus_label, corpus_names
from ...common.errors import UserError
from ...common.paths import cache_root, digest
from ...common.vocabulary import largest_id
from ..keys.arguments import DataArguments
from .account import FORMAT, finish, require_enough
from .batches import Render, as_it_is
from .blocks import load_blocks
from .chat import open_chat
from .corpora import as_begun, open_corpus, open_validation
from .held_out import HeldOut, held_out_of
from .packing import Packer, Say
from .sources.base import Source
from .sources.registry import open_source
from .tidy import tidy_cache
from .tokenizer import fingerprint, get_tokenizer


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
    if "embedded" in corpus_names(data.corpus):
        say("data: reading the docstrings of the installed packages (about 20 s the first time)")
    tidy_cache(say)
    data = _as_begun(data, recorded)
    source = open_corpus(data)
    validation = open_validation(data, source)
    cut = _cut(data, source, validation, run_tokens)
    mark = source.fingerprint()
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
    render: Render = as_it_is
    if (chat := open_chat(data, tokenizer)) is not None:
        key_parts["chat_template"], render = digest([chat.template, chat.special]), chat.items
    folder = cache_root() / "blocks" / digest(key_parts)[:24]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A lock rather than a barrier: other processes of the same launch wait here for hours if they must,
    # where a collective operation would time out.
    with FileLock(str(folder) + ".lock"):
        if not (folder / "data.json").is_file():
            partial = folder.with_name(f".{folder.name}.partial")
            partial.mkdir(parents=True, exist_ok=True)
            work = Packer(partial, tokenizer, data, key_parts["token_budget"], say, render)
            _materialize(work, source, validation, data)
            finish(work, source, validation, folder, key_parts)
    return _load(folder, tokenizer, check)


def _cut(data: DataArguments, source: Source, validation: Source | None, run_tokens: int) -> dict[str, Any]:
    """How the text is cut into blocks, as the key of the blocks holds it."""
    budget = data.token_budget
    if budget is None and source.endless:
        budget = run_tokens
    cut: dict[str, Any] = {
        "block_size": data.block_size,
        "token_budget": budget,
        "validation_fraction": data.held_out,
        "validation_tokens": data.validation_tokens,
        "validation_split": data.validation_split,
    }
    if data.validation_corpus is not None and validation is not None:
        cut["validation_corpus"] = validation.fingerprint()
    return cut


def prepared_as_told(
    data: DataArguments, *, vocab_size: int, description: dict[str, Any], folder: Path, tokenizer: Any, check: bool
) -> PreparedData:
    """The blocks that another process has prepared on this disk; nothing on the disk is asked whether they are there.

    Args:
        data: the recipe's data keys.
        vocab_size: rows of the model's embedding.
        description: what the other process found in data.json.
        folder: where the blocks lie.
        tokenizer: the one that was trained on them; None where the recipe names one, which is loaded.
        check: as of `prepare_data`.

    Raises:
        UserError: a shard is not what was described, or the tokenizer is another one here.
    """
    if tokenizer is None:
        tokenizer = get_tokenizer(data, vocab_size, "", iter(()))
        if fingerprint(tokenizer) != description["fingerprints"]["tokenizer"]:
            raise UserError(f"tokenizer '{data.tokenizer}' is another one here than at the main process")
    return _load(folder, tokenizer, check, description)


def _as_begun(data: DataArguments, recorded: dict[str, Any] | None) -> DataArguments:
    """The keys with the commits that a run was begun with: the Hub may have moved on since."""
    try:
        found = cache_root() / "blocks" / Path(str((recorded or {})["blocks"])).name / "data.json"
        return as_begun(data, json.loads(found.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
    return digest([source_mark, data.held_out])


def _training_texts(data: DataArguments) -> Iterator[str]:
    source = open_source(data)  # its own, so that bad records are not counted twice
    held_out = held_out_of(source, data.held_out)
    for piece, _ in source.pieces():
        if not held_out.take(piece)[0]:
            yield from piece.texts


def _load(folder: Path, tokenizer: Any, check: bool, description: dict[str, Any] | None = None) -> PreparedData:
    try:
        if description is None:
            description = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        train = load_blocks(folder, description["train"]["shards"], check=check)
        validation = load_blocks(folder, description["validation"]["shards"], check=check)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"prepared data {folder} is damaged ({error}); delete the folder and start again") from None
    return PreparedData(train, validation, tokenizer, description, folder)


def _materialize(work: Packer, source: Source, validation: Source | None, data: DataArguments) -> None:
    budget = work.train.max_blocks and work.train.max_blocks * data.block_size
    size = (budget or 0) * work.train.dtype.itemsize / 1e6
    upto = f"at most {budget:,} tokens ({size:,.0f} MB on disk)" if budget else "the whole corpus"
    name = corpus_label(data.corpus)
    work.say(f"data: packing {upto} of '{name}' into blocks of {data.block_size} in {cache_root()}")
    if validation is not None:
        work.read(source, HeldOut(None, None), only=work.train)
        work.read(validation, HeldOut(None, None), only=work.validation)
    else:
        work.read(source, held_out_of(source, data.validation_fraction))
    work.train.flush()
    work.validation.flush()
    require_enough(work, data, source)
