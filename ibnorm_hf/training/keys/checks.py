# SPDX-License-Identifier: Apache-2.0
"""What the keys of a recipe must be together; each rule is a sentence about one key."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...common.corpus import corpus_names
from ...common.errors import UserError
from .arguments import SAMPLES, DataArguments, ModelArguments, RunArguments
from .corpora import corpus_entries
from .reading import Asked
from .schedule import LambdaSchedule

WITHOUT_EPOCHS = ("no", "steps")  # of the strategies that TrainingArguments knows: a run has no epochs


def check_start(model: ModelArguments, data: Any, repo_id: str | None, asked: Asked) -> None:
    """Keys of what is trained and from where, which contradict each other more easily than others.

    Raises:
        UserError: naming the first key whose rule is broken.
    """
    text = isinstance(data, DataArguments)
    pretrained = model.pretrained is not None
    for key in ("norm_lambda", "norm_scope"):  # one of them is no list
        value = getattr(model, key)
        if isinstance(value, list) and len(value) == 1:
            setattr(model, key, value[0])
    flags = [
        f.name for f in dataclasses.fields(model) if f.name.startswith("norm_") and f.name != "norm_lambda_schedule"
    ]
    swapped = any(getattr(model, flag) is not None for flag in flags)
    whole = "adapter" if model.adapter is not None else "pretrained"
    rules = [
        (whole, text or not (pretrained or model.adapter), "is for language models"),
        ("push_to_hub", text or not repo_id, "is for language models; upload this run with `hf upload`"),
        ("norm_lambda_schedule", text or not model.norm_lambda_schedule, "is for language models"),
        (
            "norm_lambda_schedule",
            not (model.norm_lambda_schedule and model.norm_lambda_learned),
            "and norm_lambda_learned exclude each other",
        ),
        (
            "early_stopping_patience",
            asked.values.get("early_stopping_patience") is None or not model.norm_lambda_schedule,
            "and norm_lambda_schedule exclude each other: the loss may rise while lambda falls",
        ),
        ("model", not pretrained or not asked.sizes, "follows from `pretrained`; leave it out"),
        ("model_type", not pretrained or "model_type" not in asked.where, "follows from `pretrained`; leave it out"),
        ("train_only", model.train_only in (None, "norms"), "must be norms, or null"),
        ("adapter", model.adapter in (None, "lora", "norms"), "must be lora, norms, or null"),
        ("adapter", model.adapter is None or pretrained, "needs `pretrained`: the frozen weights it stands on"),
        ("adapter", model.adapter is None or model.train_only is None, "and train_only exclude each other"),
        (
            "adapter",
            model.adapter is None or not (swapped or model.norm_lambda_schedule),
            "remembers only the name of its base, so the base must have its norms already: make one with "
            "`ibnorm-hf convert`, give it as `pretrained`, and leave the norm flags out",
        ),
        ("lora_r", model.lora_r > 0, "must be at least 1"),
        ("lora_dropout", 0 <= model.lora_dropout < 1, "must lie between 0 and 1"),
    ]
    for key, right, message in rules:
        if not right:
            raise UserError(f"{asked.place(key)}: key {key} {message}")
    if model.norm_lambda_schedule is not None:
        model.norm_lambda_schedule = dataclasses.asdict(LambdaSchedule.parse(model.norm_lambda_schedule))
    if pretrained and text and "tokenizer" not in asked.where:
        data.tokenizer = model.pretrained


def check_values(data: Any, run: RunArguments, asked: Asked) -> None:
    """Keys of the data and of the run; also derives gradient_accumulation_steps from the global batch.

    Raises:
        UserError: naming the first key whose rule is broken.
    """
    world = max(1, run.world_size)
    rules = [
        ("max_steps", run.max_steps > 0, "must be at least 1"),
        *(_text_rules(data) if isinstance(data, DataArguments) else data.rules()),
        ("per_device_train_batch_size", run.per_device_train_batch_size > 0, "must be at least 1"),
        ("gradient_accumulation_steps", run.gradient_accumulation_steps > 0, "must be at least 1"),
        ("grad_spike_factor", run.grad_spike_factor is None or run.grad_spike_factor > 1, "must be above 1"),
        ("learning_rate", 0 <= run.learning_rate < float("inf"), "must be a number of at least 0"),
        (
            "sample_steps",
            run.sample_steps is None or (run.sample_steps > 0 and isinstance(data, DataArguments)),
            "must be at least 1, and is for language models",
        ),
        ("eval_strategy", run.eval_strategy in WITHOUT_EPOCHS, "must be steps or no: a run has no epochs"),
        *_early_stopping_rules(run),
        ("processes", run.processes in (None, world), f"is {run.processes}, but the launcher started {world}"),
        (
            "record_shapes",
            not (run.record_shapes and run.torch_compile),
            "reads inside the model; not with torch_compile",
        ),
        ("save_strategy", run.save_strategy in WITHOUT_EPOCHS, "must be steps or no: a run has no epochs"),
    ]
    for key, right, message in rules:
        if not right:
            raise UserError(f"{asked.place(key)}: key {key} {message}")
    _apply_global_batch(run, asked)
    if "dataloader_pin_memory" not in asked.where:
        run.dataloader_pin_memory = run.device.type != "cpu"  # torch warns where there is nothing to pin for


def _early_stopping_rules(run: RunArguments) -> list[tuple[str, bool, str]]:
    patience = run.early_stopping_patience
    return [
        ("early_stopping_patience", patience is None or patience > 0, "must be at least 1"),
        (
            "early_stopping_patience",
            patience is None or run.eval_strategy != "no",
            "needs validations: set eval_strategy to steps",
        ),
        ("early_stopping_threshold", 0 <= run.early_stopping_threshold < float("inf"), "must not be negative"),
        (
            "early_stopping_threshold",
            patience is not None or not run.early_stopping_threshold,
            "needs early_stopping_patience beside it",
        ),
    ]


def _text_rules(data: DataArguments) -> list[tuple[str, bool, str]]:
    prompts, chat = data.prompt_column is not None, data.messages_column is not None
    names = corpus_names(data.corpus)
    return [
        *_corpus_rules(data),
        ("prompt_column", not prompts or data.completion_column is not None, "needs completion_column beside it"),
        ("completion_column", data.completion_column is None or prompts, "needs prompt_column beside it"),
        ("completion_column", not prompts or data.completion_column != data.prompt_column, "is prompt_column too"),
        ("text_column", not prompts or data.text_column == "text", "and prompt_column exclude each other"),
        ("prompt_column", not prompts or "embedded" not in names, "needs columns: the embedded corpus has none"),
        ("messages_column", not (chat and prompts), "and prompt_column exclude each other"),
        ("text_column", not chat or data.text_column == "text", "and messages_column exclude each other"),
        ("messages_column", not chat or "embedded" not in names, "needs columns: the embedded corpus has none"),
        ("chat_template", chat or data.chat_template is None, "needs messages_column: the column of conversations"),
        ("block_size", data.block_size > 1, "must be at least 2"),
        ("token_budget", data.token_budget is None or data.token_budget >= data.block_size, "must hold a block"),
        ("validation_tokens", data.validation_tokens >= data.block_size, "must hold at least one block"),
        ("validation_fraction", 0 < data.validation_fraction < 0.5, "must lie between 0 and 0.5"),
        ("max_bad_records", data.max_bad_records >= 0, "must not be negative"),
        ("prepare_workers", data.prepare_workers is None or data.prepare_workers > 0, "must be at least 1"),
    ]


def _corpus_rules(data: DataArguments) -> list[tuple[str, bool, str]]:
    faults = []
    for key, value, weighted in (("corpus", data.corpus, True), ("validation_corpus", data.validation_corpus, False)):
        try:
            if value is not None:
                corpus_entries(value, weighted=weighted)
        except ValueError as error:
            faults.append((key, False, str(error)))
    ends = ("first_exhausted", "all_exhausted")
    return [
        *faults,
        (
            "validation_corpus",
            not (data.validation_corpus and data.validation_split),
            "and validation_split exclude each other",
        ),
        ("corpus_stopping_strategy", data.corpus_stopping_strategy in ends, f"must be {' or '.join(ends)}"),
        ("sample_by", data.sample_by in SAMPLES, f"must be {', '.join(SAMPLES[:-1])} or {SAMPLES[-1]}"),
    ]


def _apply_global_batch(run: RunArguments, asked: Asked) -> None:
    """Derive gradient_accumulation_steps from global_batch_size and the number of processes."""
    micro = run.per_device_train_batch_size * max(1, run.world_size)
    if run.global_batch_size is None:
        run.global_batch_size = micro * run.gradient_accumulation_steps
        return
    if run.global_batch_size <= 0 or run.global_batch_size % micro:
        raise UserError(
            f"{asked.place('global_batch_size')}: global_batch_size {run.global_batch_size} must be a multiple "
            f"of per_device_train_batch_size x processes = {micro}; change one of them"
        )
    steps = run.global_batch_size // micro
    if "gradient_accumulation_steps" in asked.where and run.gradient_accumulation_steps != steps:
        raise UserError(
            f"{asked.place('gradient_accumulation_steps')}: gradient_accumulation_steps "
            f"{run.gradient_accumulation_steps} disagrees with global_batch_size {run.global_batch_size}, which needs "
            f"{steps}; give only one of the two"
        )
    run.gradient_accumulation_steps = steps
