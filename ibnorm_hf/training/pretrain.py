# SPDX-License-Identifier: Apache-2.0
"""The main job: a recipe becomes a run folder."""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import set_seed
from transformers.utils import logging as hf_logging

from ..common.errors import UserError
from ..common.packed import COLUMN, unpack
from ..common.paths import cache_root, sync_folder, write_atomic, write_json
from .folder.failures import told
from .folder.manifest import checkpoints, newest_complete, seal, verify
from .folder.run_folder import claim, differences, identity, run_id, write_environment
from .keys.recipe import Recipe, resolved
from .loop.anneal import AnnealLambda, LambdaPath, plan_lambda
from .loop.callbacks import CompressionShares, RunLog, StopOnSignal
from .loop.trainer import PretrainTrainer
from .model.build import build_config, build_trained_model, lambda_schedule, vocab_size
from .model.trained_part import frozen_sha256, is_adapter
from .plan import Plan, make_plan, plan_lines
from .text.prepare import PreparedData, prepare_data

_CALIBRATION_BLOCKS = 8  # training blocks on which `start: auto` and `unit: spread` are measured


@dataclass(frozen=True)
class Result:
    """End of a run: numbers as in eval/validation.json, or the signal that stopped it early."""

    folder: Path
    validation: dict[str, Any]
    tokens_per_s: float | None
    sample: str
    stopped_by: int | None = None


def print_plan(recipe: Recipe) -> None:
    """The `--dry_run` of a recipe: no data, no weights, no file."""
    for line in plan_lines(make_plan(recipe)):
        print(line)


def prepare(recipe: Recipe) -> PreparedData:
    """Make, or find, the packed blocks of a recipe and nothing more. Every block is checked against its sums."""
    run = recipe.run
    tokens = run.max_steps * int(run.global_batch_size or 0) * recipe.data.block_size
    say = print if run.process_index == 0 else _silent
    with told(
        folder=cache_root(),
        space="free some, or set IBNORM_CACHE to another disk; the same command goes on from the last shard",
        memory="lower prepare_workers",
    ):
        # One process a machine reads everything once: silent damage on disk would be trained on otherwise.
        check = run.local_process_index == 0
        return prepare_data(recipe.data, vocab_size=vocab_size(recipe), run_tokens=tokens, say=say, check=check)


def pretrain(recipe: Recipe) -> Result:
    """Train a recipe to its last step, resuming what is there, and complete its run folder.

    Raises:
        UserError: for every mistake that can be put right, in one sentence.
    """
    run = recipe.run
    folder, main = Path(str(run.output_dir)), run.process_index == 0
    say = print if main else _silent
    _quiet_libraries()
    plan = make_plan(recipe)
    for line in plan_lines(plan):
        say(line)
    advice = (
        f"lower per_device_train_batch_size from {run.per_device_train_batch_size} and keep global_batch_size, which "
        f"leaves every step's samples as they are, set activation_checkpointing, or lower block_size from "
        f"{recipe.data.block_size}; checkpoints are unharmed"
    )
    space = "checkpoints before it are unharmed; free some room, and the same command goes on from the newest"
    with claim(recipe) if main else nullcontext(), told(folder=folder, space=space, memory=advice):
        return _run(recipe, folder, plan, say)


def _run(recipe: Recipe, folder: Path, plan: Plan, say: Any) -> Result:
    run = recipe.run
    checkpoint = _checkpoint_to_resume(recipe, folder, say)
    data = prepare(recipe)
    if checkpoint is not None:
        _require_same_data(checkpoint, data)
    _say_epochs(plan.steps * plan.sequences_per_step, len(data.train), say)
    trainer = _make_trainer(recipe, data, folder, checkpoint[1] if checkpoint else None, say)
    if run.process_index == 0:
        write_json(folder / "data.json", data.description)
        write_environment(folder, run.seed, max(1, run.world_size))
    stopped_by = train_to_the_end(trainer, checkpoint, say)
    if stopped_by is not None:
        return Result(folder, {}, None, "", stopped_by=stopped_by)
    return _finish(recipe, trainer, data, folder)


def train_to_the_end(trainer: PretrainTrainer, checkpoint: tuple[Path, dict[str, Any]] | None, say: Any) -> int | None:
    """Train from the checkpoint, or from step 0, to the last step; returns the signal that stopped it before."""
    done, steps = checkpoint[1]["step"] if checkpoint else 0, trainer.args.max_steps
    with StopOnSignal() as stop:
        trainer.add_callback(stop)
        if checkpoint is None:
            trainer.train()
        elif done < steps:
            say(f"resume: {checkpoint[0].name}")
            trainer.resume(checkpoint[0])
        else:
            say(f"resume: all {done} steps are done, nothing to train")
            trainer.load(checkpoint[0])
    stopped = stop.received is not None and trainer.state.global_step < steps
    return int(stop.received) if stopped and stop.received is not None else None


def _silent(text: str) -> None:
    pass


def _quiet_libraries() -> None:
    # Trainer repeats at the info and warning levels what our own lines say.
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    # PEFT asks transformers by an old name; nothing a user could do about it.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)


def _checkpoint_to_resume(recipe: Recipe, folder: Path, say: Any) -> tuple[Path, dict[str, Any]] | None:
    wanted = recipe.run.resume
    if wanted == "never":
        return None
    if wanted == "auto":
        found = newest_complete(folder, say)
        if found is None and checkpoints(folder):
            say("resume: no complete checkpoint, starting from step 0")
    else:
        path = Path(wanted)
        if not path.is_dir():
            raise UserError(f"resume: checkpoint {path} does not exist; give auto, never or a checkpoint-N folder")
        found = path, verify(path)
    if found is not None:
        _require_same_recipe(recipe, *found)
    return found


def _require_same_recipe(recipe: Recipe, checkpoint: Path, manifest: dict[str, Any]) -> None:
    step = manifest.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= recipe.run.max_steps:
        raise UserError(f"checkpoint {checkpoint} is damaged: its manifest names no step of this run")
    if manifest.get("run_id") != run_id(recipe):
        theirs = manifest.get("recipe")
        changed = differences(theirs, identity(resolved(recipe))) if isinstance(theirs, dict) else []
        if theirs and not changed:
            return  # written when some key, at its default here, did not exist yet
        why = f" ({'; '.join(changed[:3])})" if changed else ""
        raise UserError(
            f"checkpoint {checkpoint} belongs to another recipe{why}; choose another output_dir or checkpoint"
        )


def _require_same_data(checkpoint: tuple[Path, dict[str, Any]], data: PreparedData) -> None:
    """The same recipe may name a corpus or a tokenizer that has changed since: other samples, in silence."""
    theirs, mine = checkpoint[1].get("fingerprints"), data.description["fingerprints"]
    if theirs != mine:
        parts = theirs if isinstance(theirs, dict) else {}
        changed = [name for name in ("tokenizer", "source") if parts.get(name) != mine[name]] or ["blocks"]
        what = {"source": "corpus", "blocks": "packed data"}.get(changed[0], changed[0])
        raise UserError(
            f"checkpoint {checkpoint[0]} was trained with another {what} than the recipe names now; "
            "bring the old one back, or choose another output_dir"
        )


def _say_epochs(samples: int, blocks: int, say: Any) -> None:
    epochs = samples / blocks
    seen = f": every block is seen up to {math.ceil(epochs):,} times" if epochs > 1 else ""
    say(f"data: {samples:,} samples from {blocks:,} blocks = {epochs:.2f} epochs{seen}")


def _sharding_wanted() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _make_trainer(
    recipe: Recipe, data: PreparedData, folder: Path, manifest: dict[str, Any] | None = None, say: Any = print
) -> PretrainTrainer:
    """``manifest`` is that of the checkpoint to go on from, if any."""
    run = recipe.run
    set_seed(run.seed)
    config = build_config(recipe, data.tokenizer)
    model = build_trained_model(recipe, config)
    trainer = PretrainTrainer(
        model=model, args=run, train=data.train, validation=data.validation, tokenizer=data.tokenizer
    )
    if _sharding_wanted() and not trainer.is_fsdp_enabled:
        raise UserError("accelerate shards no model on this device and would copy it instead; use ddp.yaml, or a GPU")
    trainer.facts = {
        "run_id": run_id(recipe),
        "recipe": identity(resolved(recipe)),
        "fingerprints": data.description["fingerprints"],
    }
    if commit := getattr(config, "_commit_hash", None):
        trainer.facts["pretrained_commit"] = commit  # of a base on the Hub, which may move on
    if is_adapter(model):
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError(
                "an adapter is trained on whole copies of its base: use accelerate/ddp.yaml, or one process"
            )
        trainer.facts["base"] = frozen_sha256(model)
        if manifest and manifest.get("base") != trainer.facts["base"]:
            raise UserError(f"the weights of {recipe.model.pretrained} have changed since; bring the old ones back")
    anneal = _annealing(recipe, config, trainer, data, manifest, say)
    # Hooks inside a compiled model would break its graph.
    shares = None if run.torch_compile else CompressionShares(model)
    tokens = trainer.order.batch * recipe.data.block_size
    log = RunLog(folder / "metrics.jsonl", tokens_per_step=tokens, order=trainer.order, shares=shares, anneal=anneal)
    trainer.add_callback(log)
    return trainer


def _annealing(
    recipe: Recipe,
    config: Any,
    trainer: PretrainTrainer,
    data: PreparedData,
    manifest: dict[str, Any] | None,
    say: Any,
) -> AnnealLambda | None:
    """Lower lambda as the recipe says. What had to be measured is measured once, and read again on resuming."""
    found = lambda_schedule(recipe, config)
    if found is None:
        return None
    model: Any = trainer.model
    try:
        path = LambdaPath.from_dict(manifest["norm_lambda"]) if manifest else None
    except (KeyError, TypeError, ValueError):
        raise UserError("the checkpoint does not say how its lambda fell; choose another output_dir") from None
    if path is None:
        # Spread over the corpus: its first blocks may be all of one kind.
        count = len(data.train)
        rows = data.train[sorted({i * count // _CALIBRATION_BLOCKS for i in range(_CALIBRATION_BLOCKS)})][COLUMN]
        # Rounding may differ between the machines of a run, and its processes must agree on lambda.
        path = broadcast_object_list([plan_lambda(model, *found, *unpack(rows))])[0]
        for line in path.lines():
            say(line)
    trainer.facts["norm_lambda"] = path.as_dict()
    anneal = AnnealLambda(model, path)
    anneal.set(manifest["step"] if manifest else 1, recipe.run.max_steps)
    trainer.add_callback(anneal)
    return anneal


def _finish(recipe: Recipe, trainer: PretrainTrainer, data: PreparedData, folder: Path) -> Result:
    """Validate, save `model/`, generate a sample. Can be repeated: a kill in here loses nothing."""
    loss, tokens = _last_validation(trainer) or trainer.token_loss(data.validation)
    bytes_per_token = data.description["validation"]["bytes_per_token"]
    validation = {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
        "tokens": tokens,
        "blocks": len(data.validation),
        "sha256": data.description["validation"]["sha256"],
        "step": recipe.run.max_steps,
        "tokens_seen": recipe.run.max_steps * trainer.order.batch * recipe.data.block_size,
        "seed": recipe.run.seed,
    }
    _save_final(trainer, folder)
    sample = ""
    if recipe.run.process_index == 0:
        sample = generate_sample(trainer, data.tokenizer, recipe.run.sample_prompt, recipe.run.seed)
        write_json(folder / "eval" / "validation.json", validation)
        write_atomic(folder / "eval" / "sample.txt", sample + "\n")
    return Result(folder, validation, _mean_speed(folder / "metrics.jsonl"), sample)


def _last_validation(trainer: PretrainTrainer) -> tuple[float, int] | None:
    """The validation of the last step, if the training loop has just made it."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry:
            last = entry.get("step") == trainer.args.max_steps
            return (entry["eval_loss"], int(entry["eval_tokens"])) if last else None
    return None


def _save_final(trainer: PretrainTrainer, folder: Path) -> None:
    final = folder / "model"
    with tempfile.TemporaryDirectory(prefix=".model.", dir=folder) if trainer.args.should_save else _nowhere() as aside:
        trainer.save_model(aside)
        if trainer.args.should_save:
            new = Path(aside) / "new"
            new.mkdir()
            for path in [p for p in Path(aside).iterdir() if p != new]:
                os.replace(path, new / path.name)
            if final.exists():
                os.replace(final, Path(aside) / "old")
            new.chmod(0o755)
            seal(new, {**trainer.facts, "step": trainer.args.max_steps})
            os.replace(new, final)
            sync_folder(folder)
    trainer.accelerator.wait_for_everyone()


class _nowhere:
    """Stands for the temporary folder on processes that write nothing."""

    def __enter__(self) -> str:
        return os.devnull

    def __exit__(self, *_: Any) -> None:
        pass


def generate_sample(trainer: PretrainTrainer, tokenizer: Any, prompt: str, seed: int) -> str:
    """Forty sampled tokens after ``prompt``: the same for the same weights and seed."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return ""  # one process alone cannot run a sharded model
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(trainer.args.device)
    if not ids.numel():
        ids = torch.tensor([[tokenizer.eos_token_id]], device=trainer.args.device)
    model.eval()
    with torch.random.fork_rng(), trainer.accelerator.autocast():
        torch.manual_seed(seed)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=True,
            top_k=50,
            pad_token_id=tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(out[0], skip_special_tokens=True))


def _mean_speed(path: Path) -> float | None:
    """Mean of the logged tokens/s but the first, which holds warm-up; None without lines."""
    if not path.is_file():
        return None
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    speeds = [line["tokens_per_s"] for line in lines if line.get("tokens_per_s")]
    speeds = speeds[1:] or speeds
    return len(speeds) / sum(1 / s for s in speeds) if speeds else None
