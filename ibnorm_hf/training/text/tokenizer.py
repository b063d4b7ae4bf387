# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a run: trained on the corpus, or any that AutoTokenizer loads."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ...common.errors import UserError, one_line
from ...common.online import hub_or_cache, reason
from ...common.paths import cache_root, digest
from ...common.vocabulary import beyond, largest_id
from ...pretrained import load_tokenizer
from ..keys.arguments import DataArguments

END_OF_TEXT = "<|endoftext|>"
# Enough text to settle the merges of any vocabulary trained here, and a bound on time and memory.
TRAINING_CHARS = 64_000_000
_VERSION = 1


def get_tokenizer(data: DataArguments, vocab_size: int, source_mark: str, texts: Iterator[str]) -> Any:
    """Load or train the tokenizer and check that it fits the model.

    Args:
        data: the recipe's data keys.
        vocab_size: rows of the model's embedding.
        source_mark: fingerprint of the corpus, part of the cache key of a trained tokenizer.
        texts: training text, read only if a tokenizer has to be trained.

    Raises:
        UserError: it cannot be loaded, has no end-of-text token, or is larger than the model's vocabulary.
    """
    if data.tokenizer == "train":
        tokenizer = _trained(data.tokenizer_vocab_size or vocab_size, source_mark, texts)
    else:
        tokenizer = _loaded(data.tokenizer)
    if too_many := beyond(tokenizer, vocab_size):
        raise UserError(
            f"tokenizer '{data.tokenizer}' has {too_many} but model.vocab_size is {vocab_size}; "
            f"set model.vocab_size to {largest_id(tokenizer) + 1} or more"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer '{data.tokenizer}' has no end-of-text token; set its eos_token")
    tokenizer.model_max_length = int(1e30)  # blocks are cut here; a warning about length would be noise
    return tokenizer


def fingerprint(tokenizer: Any) -> str:
    """Hex digest of everything that decides which ids a text gets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return digest([backend.to_str(), tokenizer.eos_token_id])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        checksum = hashlib.sha256()
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                checksum.update(path.name.encode() + path.read_bytes())
    return checksum.hexdigest()


def _loaded(name: str) -> Any:
    if name.endswith(".gguf") or (Path(name).is_dir() and any(Path(name).glob("*.gguf"))):
        tokenizer = load_tokenizer(name)
        if tokenizer is None:
            raise UserError(
                f"tokenizer '{name}' cannot be read from the GGUF file; give a folder, a Hub name or `train`"
            )
        return tokenizer
    local = Path(name).exists()
    try:
        with nullcontext() if local else hub_or_cache():
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # network, missing files, malformed JSON: all end in the same advice
        why = one_line(error, 200) if local else reason(error)
        raise UserError(f"tokenizer '{name}' cannot be loaded: {why}; give a folder, a Hub name or `train`") from None


def _trained(vocab_size: int, source_mark: str, texts: Iterator[str]) -> Any:
    if vocab_size < 257:
        raise UserError(f"tokenizer_vocab_size {vocab_size} is too small: 256 bytes and an end of text need 257")
    key = digest(["bpe", _VERSION, vocab_size, source_mark, TRAINING_CHARS])[:16]
    folder = cache_root() / "tokenizers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not folder.is_dir():
            staging = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder.parent))
            train_bpe(texts, vocab_size).save_pretrained(staging)
            _give_back_memory()
            os.chmod(staging, 0o755)
            try:
                os.replace(staging, folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _give_back_memory() -> None:
    """Counting words leaves hundreds of megabytes with the C library, which keeps them for this process otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def train_bpe(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: any text can be encoded, and decoding gives the same bytes back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_at_most(texts, TRAINING_CHARS), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def _at_most(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in islice(texts, None):
        yield text
        characters -= len(text)
        if characters <= 0:
            return
