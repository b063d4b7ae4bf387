# SPDX-License-Identifier: Apache-2.0
"""What a recipe will do, worked out without data, download or memory: `--dry_run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .keys.recipe import Recipe
from .loop.decay import DecayGroups, decay_groups
from .model.build import build_config, build_trained_model, lambda_schedule
from .model.trained_part import trained_counts


@dataclass(frozen=True)
class Plan:
    """Sizes of a run. Bytes are estimates for fp32 weights and AdamW on one process."""

    parameters: int
    trained: int
    steps: int
    tokens_per_step: int
    sequences_per_step: int
    accumulation: int
    processes: int
    bytes_state: int
    bytes_activations: int
    groups: DecayGroups
    description: str
    annealing: str = ""
    lower: str = "block_size"  # beside the micro-batch, where memory is short

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run."""
        return self.steps * self.tokens_per_step


def make_plan(recipe: Recipe) -> Plan:
    """Build the model on the meta device and count. Raises UserError as `build_config` does."""
    config = build_config(recipe)
    model = build_trained_model(recipe, config, device="meta")
    trained, parameters = trained_counts(model)
    run, block = recipe.run, recipe.data.block_size
    batch = int(run.global_batch_size or 0)
    optimizer = str(getattr(run.optim, "value", run.optim))
    # fp32 weights; for what is trained gradients, and two moments for the Adam family, one for other optimizers.
    words = 3 if "adam" in optimizer else 2
    return Plan(
        parameters=parameters,
        trained=trained,
        steps=run.max_steps,
        tokens_per_step=batch * block,
        sequences_per_step=batch,
        accumulation=run.gradient_accumulation_steps,
        processes=max(1, run.world_size),
        bytes_state=4 * (parameters + words * trained),
        bytes_activations=_activation_bytes(
            config,
            run.per_device_train_batch_size * block,
            half=run.bf16 or run.fp16,
            again=bool(getattr(run, "activation_checkpointing", run.gradient_checkpointing)),
        ),
        groups=decay_groups(model),
        description=f"{config.model_type}, {getattr(config, 'norm_type', 'its own norms')}",
        annealing=_annealing(recipe, config),
    )


def _annealing(recipe: Recipe, config: Any) -> str:
    found = lambda_schedule(recipe, config)
    if found is None:
        return ""
    schedule, end = found
    unit = " x each norm's spread" if schedule.unit == "spread" else ""
    begin, arrived = (round(share * recipe.run.max_steps) for share in (schedule.warmup_share, schedule.anneal_share))
    return (
        f"lambda: {schedule.start} through step {begin:,}, then {schedule.shape} in {schedule.stages} stages to "
        f"{end}{unit} at step {arrived:,}"
    )


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


def plan_lines(plan: Plan) -> list[str]:
    """The plan as lines to print."""
    groups = plan.groups
    return [
        f"model: {plan.description}, {plan.parameters:,} parameters",
        *trained_lines(plan.trained, plan.parameters),
        *([plan.annealing] if plan.annealing else []),
        f"steps: {plan.steps:,} of {plan.sequences_per_step:,} sequences = {plan.tokens_per_step:,} tokens "
        f"({plan.processes} processes x {plan.accumulation} micro-batches)",
        f"tokens: {plan.tokens:,} in all, {plan.tokens / plan.parameters:.1f} a parameter, "
        f"{6 * plan.parameters * plan.tokens:.2e} FLOPs",
        f"bytes: {size_text(plan.bytes_state)} weights, gradients and optimizer + about "
        f"{size_text(plan.bytes_activations)} activations a process",
        f"decay: {len(groups.decay)} tensors: {_classes(groups.decay_classes)}",
        f"no decay: {len(groups.no_decay)} tensors: {_classes(groups.no_decay_classes)}",
    ]


def trained_lines(trained: int, parameters: int) -> list[str]:
    """What a partly frozen model trains, as a line; nothing where all is trained."""
    if trained == parameters:
        return []
    return [f"trained: {trained:,} of {parameters:,} parameters ({100 * trained / parameters:.3g} %), the rest frozen"]


def _classes(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda i: -i[1])) or "none"


def size_text(count: int) -> str:
    """Bytes in the unit that people read them in."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
