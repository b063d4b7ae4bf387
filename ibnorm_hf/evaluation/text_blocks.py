# SPDX-License-Identifier: Apache-2.0
"""A text as blocks of token ids, for a model that was not trained here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.packed import COLUMN, PADDING
from ..common.strict_json import read_text

if TYPE_CHECKING:
    from datasets import Dataset

MAX_BYTES = 1 << 30
LONGEST = 512  # tokens of a block where nobody says another length and the model can read as many


def blocks_of_text(file: Path, tokenizer: Any, config: Any, block_size: int | None) -> tuple[Dataset, dict[str, Any]]:
    """The text cut into blocks without overlap, the last one filled up, and what describes them.

    The text is one piece; no special token is added. The first token of a block is not predicted.

    Args:
        file: UTF-8 text.
        tokenizer: of the model.
        config: of the model; its positions bound a block.
        block_size: tokens of a block; None for ``LONGEST`` or what the model reads.

    Raises:
        UserError: no tokenizer, no text, too little of it, or blocks longer than the model reads.
    """
    from datasets import Dataset

    if tokenizer is None:
        raise UserError("perplexity of a text needs a tokenizer, and none is beside the model; save one there")
    longest = positions(config)
    size = block_size or min(LONGEST, longest or LONGEST)
    if size < 2 or (longest is not None and size > longest):
        raise UserError(f"--block_size {size}: a block has at least 2 tokens, and this model reads up to {longest}")
    text = read_text(file, MAX_BYTES)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    rows = [ids[start : start + size] for start in range(0, len(ids), size)]
    if rows and len(rows[-1]) < 2:
        rows.pop()  # nothing to predict
    if not rows:
        raise UserError(f"text {file} is {len(ids)} tokens long, too short to predict one; name a longer one")
    rows[-1] = rows[-1] + [PADDING] * (size - len(rows[-1]))
    digest = hashlib.sha256(repr((size, ids)).encode()).hexdigest()
    description = {"bytes_per_token": len(text.encode()) / len(ids), "blocks": len(rows), "sha256": digest}
    return Dataset.from_dict({COLUMN: rows}).with_format("numpy"), description


def positions(config: Any) -> int | None:
    """The longest sequence that a model of this config reads; None where it does not say."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        found = getattr(config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None
