# SPDX-License-Identifier: Apache-2.0
"""How sure a mean over tokens is, and whether two models differ on the same blocks.

Tokens of one block share their text, so the block is the unit: a mean over tokens is a ratio of two sums over blocks,
and its standard error is that of the ratio, from the residuals of the blocks (delta method; Cochran, Sampling
Techniques, 1977, chapter 6). Blocks are taken as independent, which those of one document are not quite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.strict_json import read_object


def standard_error(nats: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Of sum(nats) / sum(result["block_tokens"]), over blocks; None for fewer than two of them."""
    blocks, total = len(nats), sum(tokens)
    if blocks < 2 or not total:
        return None
    mean = math.fsum(nats) / total
    squares = math.fsum((n - mean * t) ** 2 for n, t in zip(nats, tokens, strict=True))
    return math.sqrt(squares * blocks / (blocks - 1)) / total


def compare_with(result: dict[str, Any], other: Path) -> dict[str, Any]:
    """The difference of a result to another one on the very same blocks: nats a token, below 0 where it is better.

    Args:
        result: as ``evaluate_perplexity`` returns it.
        other: the file that it wrote for another model.

    Raises:
        UserError: the file is no such result, or of other blocks.
    """
    found = read_object(other)
    nats, tokens = found.get("block_nats"), found.get("block_tokens")
    if not isinstance(nats, list) or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in nats):
        raise UserError(f"{other} keeps no loss a block; make it again with `ibnorm-hf eval MODEL --tasks perplexity`")
    if (found.get("sha256"), tokens, len(nats)) != (
        result["sha256"],
        result["block_tokens"],
        len(result["block_nats"]),
    ):
        raise UserError(
            f"{other} was measured on other blocks: another text, tokenizer, block size or limit; measure both models "
            "with the same ones"
        )
    differences = [mine - theirs for mine, theirs in zip(result["block_nats"], nats, strict=True)]
    return {
        "model": found.get("model"),
        "difference": math.fsum(differences) / sum(result["block_tokens"]),
        "standard_error": standard_error(differences, result["block_tokens"]),
        "better_blocks": sum(d < 0 for d in differences),
    }
