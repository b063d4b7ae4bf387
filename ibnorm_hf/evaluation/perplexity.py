# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a causal model on a text, or of a run on its own validation blocks: a mean over tokens.

Batches and processes do not matter. Of a run it is the number that training writes to ``eval/validation.json``,
computed again from ``model/``.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import AutoModelForCausalLM

from .. import registration  # noqa: F401
from ..common.base import require_recorded_weights
from ..common.errors import UserError
from ..common.held_out import load_validation_blocks
from ..common.nats import nats_of_rows
from ..common.packed import COLUMN, unpack
from ..common.paths import write_json
from ..pretrained import load_tokenizer
from .paired import compare_with, standard_error
from .target import Target, resolve
from .text_blocks import blocks_of_text

_DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def evaluate_perplexity(
    model: str | Path,
    *,
    text: str | Path | None = None,
    blocks: str | Path | None = None,
    against: str | Path | None = None,
    output: str | Path | None = None,
    block_size: int | None = None,
    batch_size: int = 8,
    limit: float | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> dict[str, Any] | None:
    """Measure the perplexity of a causal model and write it to ``perplexity.json``, or ``perplexity-TEXT.json``.

    Without a text, it is that of a run on its own validation blocks: the number of its ``eval/validation.json``. Under
    ``torchrun`` or ``accelerate launch`` process r takes blocks r, r + W, ...; sums are added in float64.

    Args:
        model: a run, a checkpoint of one, a model folder, an adapter, or a name of the Hub.
        text: a UTF-8 file that any model can be measured on, cut into blocks without overlap.
        blocks: folder of the run's packed blocks; None takes where the run left them.
        against: the file that this wrote for another model on the same blocks; the result then has their difference.
        output: folder for the result; None is that of the run, ``RUN/eval``, or ``eval/NAME``.
        block_size: tokens of a block of ``text``; None: 512, or what the model reads where that is less.
        batch_size: blocks at once; the result does not depend on it.
        limit: only so many blocks.
        device: where the model computes; None takes a GPU where there is one.
        dtype: of the weights: auto (as stored), float32, bfloat16, float16.

    Returns:
        ``loss`` in nats a predicted token with its ``standard_error`` over blocks, ``perplexity``, ``bits_per_byte``,
        and for each block ``block_nats`` and ``block_tokens``; None on processes other than the first.

    Raises:
        UserError: no such model, blocks missing or other than those the run was validated on, ids beyond the embedding,
            a text that cannot be read, or a result to compare with that is of other blocks.
    """
    options = argparse.Namespace(
        block_size=block_size, batch_size=batch_size, limit=limit, device=device, dtype=dtype, against=_path(against)
    )
    target = resolve(str(model))
    return _evaluate(target, _path(text), _path(blocks), Path(output or target.output), options)


def perplexity_command(
    target: Target, text: Path | None, blocks: Path | None, output: Path, words: Sequence[str], alone: bool
) -> dict[str, Any] | None:
    """``evaluate_perplexity`` with the words of a command line.

    ``--batch_size``, ``--device``, ``--limit`` (whole blocks) and ``--model_args dtype=`` mean what they mean to the
    harness.

    Args:
        alone: no harness task was asked for, so other options are mistakes.
    """
    return _evaluate(target, text, blocks, output, parse_options(words, alone))


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _evaluate(
    target: Target, text: Path | None, blocks: Path | None, output: Path, options: argparse.Namespace
) -> dict[str, Any] | None:
    if text is None and target.run is None:
        raise UserError(
            f"perplexity needs the validation blocks of a run, and {target.pretrained} is none; name a text with --text"
        )
    if options.dtype not in _DTYPES:
        raise UserError(f"dtype {options.dtype} is unknown; give one of {', '.join(_DTYPES)}")
    model, data, description = open_model(target, text, blocks, options)
    rank, world = processes()
    autocast = autocast_of(target)
    each = block_nats(model, data, batch_size=options.batch_size, rank=rank, world=world, autocast=autocast)
    if world > 1:
        dist.all_reduce(each)
    if rank != 0:
        return None
    result = _result(each, data, description, target, options, world, model, autocast)
    if text is not None:
        result["text"] = text.name
    if options.against is not None:
        result["against"] = compare_with(result, options.against)
    write_json(output / ("perplexity.json" if text is None else f"perplexity-{_word(text)}.json"), result)
    return result


def open_model(
    target: Target, text: Path | None, blocks: Path | None, options: argparse.Namespace
) -> tuple[Any, Dataset, dict[str, Any]]:
    """The model in eval mode on its device, the blocks it is measured on, and what describes them.

    Raises:
        UserError: the model cannot be loaded, or the blocks are not its own.
    """
    processes()  # before a device is chosen
    target.say_of_base()
    model = _load(target, options.dtype).to(torch.device(options.device or _default_device())).eval()
    if text is None:
        data, description = load_validation_blocks(target.run, blocks)  # type: ignore[arg-type]
    else:
        tokenizer = load_tokenizer(target.tokenizer or target.peft or target.pretrained)
        tokenizer = tokenizer or load_tokenizer(target.pretrained)
        data, description = blocks_of_text(text, tokenizer, model.config, options.block_size)
    if options.limit is not None:
        data = data.select(range(min(len(data), max(1, int(options.limit)))))
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(int(unpack(batch[COLUMN])[0].max()) for batch in data.iter(batch_size=256))
    if highest >= rows:
        whose = "another run's" if text is None else "another model's tokenizer"
        raise UserError(f"the blocks hold token {highest} and the model's embedding {rows} rows; they are {whose}")
    return model, data, description


def _word(text: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text.stem)


def block_nats(
    model: Any, blocks: Dataset, *, batch_size: int, rank: int = 0, world: int = 1, autocast: torch.dtype | None = None
) -> torch.Tensor:
    """(negative log likelihood in nats, predicted tokens) of each block: float64, (blocks, 2).

    Process ``rank`` of ``world`` takes blocks rank, rank + world, ...; those of others are 0.
    """
    mine = range(rank, len(blocks), world)
    starts = range(0, len(mine), batch_size)
    batches = (unpack(blocks[list(mine[start : start + batch_size])][COLUMN]) for start in starts)
    out = torch.zeros(len(blocks), 2, dtype=torch.float64, device=next(model.parameters()).device)
    done = list(nats_of_rows(model, batches, autocast=autocast))
    if done:
        out[torch.tensor(list(mine), device=out.device)] = torch.cat(done)
    return out


def parse_options(words: Sequence[str], alone: bool, task: str = "perplexity") -> argparse.Namespace:
    """The words of a command line that concern a task on blocks; ``alone`` makes others mistakes."""
    parser = argparse.ArgumentParser(prog=f"ibnorm-hf eval --tasks {task}", allow_abbrev=False)
    parser.add_argument("--batch_size", "-b", default="auto")
    parser.add_argument("--device", default=None)
    parser.add_argument("--limit", "-L", type=float, default=None)
    parser.add_argument("--block_size", type=int, default=None)
    parser.add_argument("--against", type=Path, default=None)
    parser.add_argument("--model_args", "-a", nargs="+", default=[])
    options, unknown = parser.parse_known_args(list(words))
    if unknown and alone:
        raise UserError(f"eval: {unknown[0]} does not concern {task}; leave it out")
    size = str(options.batch_size)
    if not size.startswith("auto") and not (size.isdigit() and int(size) > 0):
        raise UserError(f"--batch_size {size} is no whole number of at least 1; give one, or auto")
    options.batch_size = 8 if size.startswith("auto") else int(size)
    given = dict(pair.split("=", 1) for word in options.model_args for pair in word.split(",") if "=" in pair)
    options.dtype = given.get("dtype", "auto")
    return options


def processes() -> tuple[int, int]:
    """(number of this process, how many there are), joined in a group where there are several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _load(target: Target, dtype: str) -> Any:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            target.pretrained,
            dtype=_DTYPES[target.dtype if dtype == "auto" else dtype],
            use_safetensors=True,
            trust_remote_code=False,
            revision=target.revision or "main",
        )
        if target.peft:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, target.peft)
            require_recorded_weights(model, Path(target.peft))
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise UserError(f"model {target.pretrained} cannot be loaded ({reason}); give a complete folder") from None
    return model


def autocast_of(target: Target) -> torch.dtype | None:
    """The mixed precision of the run's own validation."""
    return _DTYPES[target.autocast] if target.autocast else None


def precision_of(model: Any, autocast: torch.dtype | None) -> dict[str, str | None]:
    """What numbers were computed in: the weights' dtype, and that of a mixed forward pass."""
    mixed = None if autocast is None else str(autocast).removeprefix("torch.")
    return {"dtype": str(model.dtype).removeprefix("torch."), "autocast": mixed}


def _result(
    each: torch.Tensor,
    data: Dataset,
    description: dict[str, Any],
    target: Target,
    options: argparse.Namespace,
    world: int,
    model: Any,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    nats, counts = each[:, 0].tolist(), [int(count) for count in each[:, 1].tolist()]
    loss = math.fsum(nats) / sum(counts)
    if not math.isfinite(loss):
        raise UserError("the loss on these blocks is not finite; the weights are damaged", exit_code=1)
    return {
        "loss": loss,
        "standard_error": standard_error(nats, counts),
        "perplexity": math.exp(loss) if loss < 700 else None,
        "bits_per_byte": loss / math.log(2) / description["bytes_per_token"],
        "tokens": sum(counts),
        "blocks": len(data),
        "all_blocks": description["blocks"],
        "bytes_per_token": description["bytes_per_token"],
        "sha256": description["sha256"],
        "model_sha256": target.fingerprint(),
        "model": target.peft or target.pretrained,
        "batch_size": options.batch_size,
        "processes": world,
        **precision_of(model, autocast),
        "block_nats": nats,
        "block_tokens": counts,
    }


def summary(result: dict[str, Any]) -> str:
    """What the console is told: a line, and one more where two models were compared."""
    part = "" if result["blocks"] == result["all_blocks"] else f" ({result['blocks']} of {result['all_blocks']} blocks)"
    perplexity = "above 1e300" if result["perplexity"] is None else f"{result['perplexity']:.4f}"
    what = f"loss on {result['text']}" if "text" in result else "validation loss"
    line = (
        f"{what} {result['loss']:.6f}{_sure(result)}  perplexity {perplexity}  "
        f"bits per byte {result['bits_per_byte']:.4f}  tokens {result['tokens']:,}{part}"
    )
    if (other := result.get("against")) is None:
        return line
    return (
        f"{line}\nagainst {other['model']}: {other['difference']:+.6f}{_sure(other)} nats a token, below 0 is better; "
        f"better on {other['better_blocks']} of {result['blocks']} blocks"
    )


def _sure(result: dict[str, Any]) -> str:
    return "" if result["standard_error"] is None else f" +- {result['standard_error']:.6f}"
