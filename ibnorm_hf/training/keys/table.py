# SPDX-License-Identifier: Apache-2.0
"""What each key of TrainingArguments is to a run: bound, free or refused. A key that is not named here is refused.

Bound keys decide what is computed: two halves of one run agree on them. Free keys change how fast or how loud a run is.
The keys of our own dataclasses are bound but for those that their class names in ``free``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IDENTITY_VERSION = 2
VERSION_KEY = "identity_version"  # in config.yaml; the first version had no such key

BOUND = frozenset(
    {
        "max_steps",
        "seed",
        "full_determinism",
        # the optimizer
        "optim",
        "optim_args",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "neftune_noise_alpha",
        # the numbers it is computed in
        "bf16",
        "fp16",
        "tf32",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
    }
)

FREE = frozenset(
    {
        "output_dir",
        # where it is published
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
        # how it is told
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "disable_tqdm",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_nan_inf_filter",
        "skip_memory_metrics",
        # how often it is validated and saved
        "eval_strategy",
        "eval_steps",
        "eval_delay",
        "eval_on_start",
        "per_device_eval_batch_size",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        # how it is spread over the machine
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "torch_empty_cache_steps",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "use_cpu",
        "ddp_backend",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_static_graph",
        "ddp_timeout",
    }
)

_VALIDATION = "validation is this package's own: the same for every batch size and number of processes"
_BY_ACCELERATE = "how a model is spread is said by `accelerate launch --config_file`, see recipes/accelerate"
_ONE_COMMIT = "the finished run is published in one commit"
_NO_BEST = "the final weights are the run's result"

REFUSED = {
    "accelerator_config": "it would change the samples of a step without a word in the log",
    "auto_find_batch_size": "it would change the samples of a step; lower per_device_train_batch_size yourself",
    "average_tokens_across_devices": "a step's loss is the mean over its tokens, whatever the number of processes",
    "batch_eval_metrics": _VALIDATION,
    "bf16_full_eval": "validation computes in the precision of training; use `bf16`",
    "data_seed": "`seed` decides the order of the samples too",
    "dataloader_drop_last": "the sampler yields exactly the samples of max_steps steps",
    "dataloader_in_order": "the order is always a seeded permutation",
    "ddp_broadcast_buffers": "every process keeps the running statistics of process 0",
    "debug": "its hooks slow every step down and stop the run in ways that cannot be resumed",
    "deepspeed": _BY_ACCELERATE,
    "do_eval": "a recipe always validates; see `eval_strategy`",
    "do_predict": "use `ibnorm-hf eval`",
    "do_train": "a recipe always trains; see `ibnorm-hf prepare` and `dry_run`",
    "enable_jit_checkpoint": "a run that is told to stop (SIGTERM) saves a checkpoint anyway",
    "eval_accumulation_steps": _VALIDATION,
    "eval_do_concat_batches": _VALIDATION,
    "eval_use_gather_object": _VALIDATION,
    "fp16_full_eval": "validation computes in the precision of training; use `fp16`",
    "fsdp": _BY_ACCELERATE,
    "fsdp_config": _BY_ACCELERATE,
    "greater_is_better": _NO_BEST,
    "hub_always_push": _ONE_COMMIT,
    "hub_revision": _ONE_COMMIT,
    "hub_strategy": _ONE_COMMIT,
    "hub_token": "secrets do not belong into recipes; log in with `hf auth login`",
    "ignore_data_skip": "a resumed run must see the samples that an uninterrupted one would see",
    "include_for_metrics": _VALIDATION,
    "include_num_input_tokens_seen": "metrics.jsonl counts tokens in any case",
    "label_names": "labels are made here",
    "label_smoothing_factor": "losses would no longer be comparable",
    "length_column_name": "packed blocks are all of one length",
    "liger_kernel_config": "it would replace the normalization under test",
    "load_best_model_at_end": _NO_BEST,
    "local_rank": "the launcher says it to each process",
    "metric_for_best_model": _NO_BEST,
    "num_train_epochs": "use `max_steps`",
    "optim_target_modules": "optimizers of some modules alone are not tested here",
    "parallelism_config": "tensor, context and pipeline parallelism are not tested here",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "prediction_loss_only": _VALIDATION,
    "remove_unused_columns": "packed blocks hold no column to remove",
    "restore_callback_states_from_checkpoint": "what a callback does here depends on the step alone",
    "resume_from_checkpoint": "use `resume`",
    "save_on_each_node": "process 0 alone writes the run folder",
    "save_only_model": "such a checkpoint cannot be resumed",
    "train_sampling_strategy": "the order is always a seeded permutation",
    "use_cache": "no cache is kept in training",
    "use_liger_kernel": "it would replace the normalization under test",
}

# Old and new name of the same key, whichever the installed Transformers knows.
SYNONYMS = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

# What looks at validation losses: when it is validated then decides what is computed.
_LOOKING = ("reduce_lr_on_plateau", "greedy")
_WHEN_VALIDATED = frozenset({"eval_strategy", "eval_steps", "eval_delay", "eval_on_start"})


def looks_at_validation(values: Mapping[str, Any]) -> bool:
    """Whether a recipe's schedule of learning rates, or its end, depends on validation losses."""
    return str(values.get("lr_scheduler_type")) in _LOOKING or values.get("early_stopping_patience") is not None


def is_bound(key: str, own_free: frozenset[str], also_bound: frozenset[str], looks: bool) -> bool:
    """Whether a key is part of a run's identity.

    Args:
        key: its name.
        own_free: the keys of our own dataclasses that are free.
        also_bound: what the kind of data binds besides (``also_bound`` of its dataclass).
        looks: whether the recipe looks at validation losses.
    """
    key = SYNONYMS.get(key, key)
    if key in also_bound or (looks and key in _WHEN_VALIDATED):
        return True
    return key not in FREE and key not in own_free
