# SPDX-License-Identifier: Apache-2.0
"""What a recipe will do, worked out without data, download or memory: `--dry_run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .keys.arguments import RunArguments
from .keys.recipe import Recipe
from .loop.decay import DecayGroups, decay_groups
from .model.build import build_config, build_trained_model, lambda_schedule
from .model.trained_part import trained_counts


@dataclass(frozen=True)
class Plan:
    """Sizes of a run, and the lines that say them. Bytes are estimates for fp32 weights on one process.

    Args:
        lower: the key that may be lowered beside the micro-batch, where memory is short.
    """

    parameters: int
    trained: int
    processes: int
    bytes_state: int
    bytes_activations: int
    groups: DecayGroups
    lines: list[str]
    lower: str


def plan_of(recipe: Recipe, model: Any, first: str, work: list[str], *, kept: int, lower: str) -> Plan:
    """The plan of a model on the meta device.

    Args:
        first: what the model is.
        work: the lines on the data and the steps.
        kept: bytes that a micro-batch keeps for its backward.
    """
    run, groups = recipe.run, decay_groups(model)
    trained, parameters = trained_counts(model)
    optimizer = str(getattr(run.optim, "value", run.optim))
    # fp32 weights; for what is trained gradients, and two moments for the Adam family, one for other optimizers.
    state = 4 * (parameters + (3 if "adam" in optimizer else 2) * trained)
    part = f"{trained:,} of {parameters:,} parameters ({100 * trained / parameters:.3g} %), the rest frozen"
    lines = [
        f"model: {first}",
        *([f"trained: {part}"] if trained < parameters else []),
        *work,
        f"bytes: {size_text(state)} weights, gradients and optimizer + about {size_text(kept)} activations a process",
        f"decay: {len(groups.decay)} tensors: {_classes(groups.decay_classes)}",
        f"no decay: {len(groups.no_decay)} tensors: {_classes(groups.no_decay_classes)}",
    ]
    return Plan(parameters, trained, max(1, run.world_size), state, kept, groups, lines, lower)


def make_plan(recipe: Recipe) -> Plan:
    """Build the model on the meta device and count. Raises UserError as `build_config` does."""
    config = build_config(recipe)
    model = build_trained_model(recipe, config, device="meta")
    run, block, parameters = recipe.run, recipe.data.block_size, trained_counts(model)[1]
    batch = int(run.global_batch_size or 0)
    tokens = run.max_steps * batch * block
    kept = _activation_bytes(
        config,
        run.per_device_train_batch_size * block,
        half=run.bf16 or run.fp16,
        again=bool(getattr(run, "activation_checkpointing", run.gradient_checkpointing)),
    )
    work = [
        *_annealing(recipe, config),
        f"steps: {run.max_steps:,} of {batch:,} sequences = {batch * block:,} tokens {spread(run)}",
        f"tokens: {tokens:,} in all, {tokens / parameters:.1f} a parameter, {6 * parameters * tokens:.2e} FLOPs",
    ]
    first = f"{config.model_type}, {getattr(config, 'norm_type', 'its own norms')}, {parameters:,} parameters"
    return plan_of(recipe, model, first, work, kept=kept, lower="block_size")


def spread(run: RunArguments) -> str:
    """How a step is spread over processes and micro-batches."""
    return f"({max(1, run.world_size)} processes x {run.gradient_accumulation_steps} micro-batches)"


def _annealing(recipe: Recipe, config: Any) -> list[str]:
    found = lambda_schedule(recipe, config)
    if found is None:
        return []
    schedule, end = found
    unit = " x each norm's spread" if schedule.unit == "spread" else ""
    begin, arrived = (round(share * recipe.run.max_steps) for share in (schedule.warmup_share, schedule.anneal_share))
    return [
        f"lambda: {schedule.start} through step {begin:,}, then {schedule.shape} in {schedule.stages} stages to "
        f"{end}{unit} at step {arrived:,}"
    ]


def _activation_bytes(config: Any, tokens: int, *, half: bool, again: bool) -> int:
    """Rough: what a pre-norm block keeps for backward with fused attention, plus fp32 logits twice.

    Computed ``again``, a block keeps its input alone, and one block at a time the rest.
    """
    config = config.get_text_config()
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    a_block = 10 * width + 4 * inner
    per_token = (layers * width + a_block if again else layers * a_block) * (2 if half else 4)
    return tokens * (per_token + 2 * 4 * config.vocab_size)


def _classes(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda i: -i[1])) or "none"


def size_text(count: int) -> str:
    """Bytes in the unit that people read them in."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
