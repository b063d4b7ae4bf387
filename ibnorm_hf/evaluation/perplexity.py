# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a run on its own validation blocks: a mean over tokens, whatever the batches and processes.

It is the number that training writes to ``eval/validation.json``, computed again from ``model/``.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import AutoModelForCausalLM

from .. import registration  # noqa: F401
from ..common.errors import UserError
from ..common.held_out import load_validation_blocks
from ..common.nats import summed_nats
from ..common.packed import COLUMN, unpack
from ..common.paths import write_json
from ..common.run import Run
from .target import Target

_DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def perplexity_of_run(
    target: Target, blocks: Path | None, output: Path, words: Sequence[str], alone: bool = True
) -> dict[str, Any] | None:
    """Measure, write ``perplexity.json`` into ``output`` and return its content (None but on the first process).

    Under ``torchrun`` or ``accelerate launch`` process r takes blocks r, r + W, ...; sums are added in float64.

    Args:
        target: a run, or a checkpoint of one.
        blocks: folder of the packed blocks; None takes where the run left them.
        output: folder for ``perplexity.json``.
        words: harness options; ``--batch_size``, ``--device``, ``--limit`` (whole blocks) and ``--model_args dtype=``
            mean here what they mean there.
        alone: no harness task was asked for, so other options are mistakes.

    Raises:
        UserError: no run, blocks missing or other than those the run was validated on, or ids beyond the embedding.
    """
    if target.run is None:
        raise UserError(f"perplexity needs the validation blocks of a run, and {target.pretrained} is none; give a run")
    options = _options(words, alone)
    rank, world = _processes()
    device = torch.device(options.device or _default_device())
    data, description = load_validation_blocks(target.run, blocks)
    if options.limit is not None:
        data = data.select(range(min(len(data), max(1, int(options.limit)))))
    model = _load(target, options.dtype).to(device).eval()
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(int(unpack(batch[COLUMN])[0].max()) for batch in data.iter(batch_size=256))
    if highest >= rows:
        raise UserError(
            f"the blocks hold token {highest} and the model's embedding {rows} rows; they are another run's"
        )
    autocast = _autocast(target.run)
    totals = token_nats(model, data, batch_size=options.batch_size, rank=rank, world=world, autocast=autocast)
    if world > 1:
        dist.all_reduce(totals)
    if rank != 0:
        return None
    result = _result(totals, data, description, target, options, world, model, autocast)
    write_json(output / "perplexity.json", result)
    return result


def token_nats(
    model: Any, blocks: Dataset, *, batch_size: int, rank: int = 0, world: int = 1, autocast: torch.dtype | None = None
) -> torch.Tensor:
    """(sum of negative log likelihoods in nats, predicted tokens) as float64, over blocks rank, rank + world, ..."""
    mine = range(rank, len(blocks), world)
    starts = range(0, len(mine), batch_size)
    batches = (unpack(blocks[list(mine[start : start + batch_size])][COLUMN]) for start in starts)
    return summed_nats(model, batches, autocast=autocast)


def _options(words: Sequence[str], alone: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ibnorm-hf eval --tasks perplexity", allow_abbrev=False)
    parser.add_argument("--batch_size", "-b", default="auto")
    parser.add_argument("--device", default=None)
    parser.add_argument("--limit", "-L", type=float, default=None)
    parser.add_argument("--model_args", "-a", nargs="+", default=[])
    options, unknown = parser.parse_known_args(list(words))
    if unknown and alone:
        raise UserError(f"eval: {unknown[0]} does not concern perplexity; leave it out")
    size = str(options.batch_size)
    if not size.startswith("auto") and not (size.isdigit() and int(size) > 0):
        raise UserError(f"--batch_size {size} is no whole number of at least 1; give one, or auto")
    options.batch_size = 8 if size.startswith("auto") else int(size)
    given = dict(pair.split("=", 1) for word in options.model_args for pair in word.split(",") if "=" in pair)
    options.dtype = given.get("dtype", "auto")
    if options.dtype not in _DTYPES:
        raise UserError(f"dtype {options.dtype} is unknown; give one of {', '.join(_DTYPES)}")
    return options


def _processes() -> tuple[int, int]:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _load(target: Target, dtype: str) -> Any:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            target.pretrained, dtype=_DTYPES[dtype], use_safetensors=True, trust_remote_code=False
        )
        if target.peft:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, target.peft)
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise UserError(f"model {target.pretrained} cannot be loaded ({reason}); give a complete folder") from None
    return model


def _autocast(run: Path) -> torch.dtype | None:
    """The mixed precision of the run's own validation."""
    recipe = Run(run).config
    return torch.bfloat16 if recipe.get("bf16") else torch.float16 if recipe.get("fp16") else None


def _result(
    totals: torch.Tensor,
    data: Dataset,
    description: dict[str, Any],
    target: Target,
    options: argparse.Namespace,
    world: int,
    model: Any,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    loss = (totals[0] / totals[1]).item()
    if not math.isfinite(loss):
        raise UserError("the loss on the validation blocks is not finite; the weights are damaged", exit_code=1)
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,
        "bits_per_byte": loss / math.log(2) / description["bytes_per_token"],
        "tokens": int(totals[1].item()),
        "blocks": len(data),
        "all_blocks": description["blocks"],
        "bytes_per_token": description["bytes_per_token"],
        "sha256": description["sha256"],
        "model_sha256": target.fingerprint(),
        "model": target.peft or target.pretrained,
        "batch_size": options.batch_size,
        "processes": world,
        "dtype": str(model.dtype).removeprefix("torch."),
        "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
    }


def summary(result: dict[str, Any]) -> str:
    """One line for the console."""
    part = "" if result["blocks"] == result["all_blocks"] else f" ({result['blocks']} of {result['all_blocks']} blocks)"
    perplexity = "above 1e300" if result["perplexity"] is None else f"{result['perplexity']:.4f}"
    return (
        f"validation loss {result['loss']:.6f}  perplexity {perplexity}  bits per byte {result['bits_per_byte']:.4f}  "
        f"tokens {result['tokens']:,}{part}"
    )
