# SPDX-License-Identifier: Apache-2.0
"""The keys of a recipe: three dataclasses, the third being Transformers' own TrainingArguments.

A key is written the same way in YAML (``learning_rate: 1.0e-3``) and on the command line
(``--learning_rate 1e-3``). The sizes of the architecture are the one nested mapping, ``model``,
and are written ``--model.hidden_size 256`` on the command line. Every key is bound (part of a run's
identity) unless its class, or `table.py` for those of TrainingArguments, says that it is free.
"""

# No `from __future__ import annotations`: HfArgumentParser needs real types.
from dataclasses import dataclass, field
from typing import ClassVar

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

SAMPLES = ("document", "paragraph", "line")  # of sample_by


@dataclass
class ModelArguments:
    """Which architecture, and which normalization in it."""

    model_type: str = field(
        default="ibnorm_llama",
        metadata={"help": "Model type of the architecture; vanilla types (llama, gpt2) are baselines without norm_*."},
    )
    norm_type: str | None = field(
        default=None,
        metadata={"help": "Normalization: see `ibnorm-hf norms`; null keeps the default of the model type."},
    )
    pretrained: str | None = field(
        default=None,
        metadata={
            "help": "Start from these weights: a folder, a Hub name or a GGUF file. Its sizes, and its tokenizer "
            "unless `tokenizer` names another, are taken over; norm_type swaps its norms, null keeps them."
        },
    )
    norm_lambda: list[float] | None = field(
        default=None,
        metadata={"help": "Scale of the compression, a number or one a norm; null takes the default of the variant."},
    )
    norm_lambda_schedule: dict | str | None = field(
        default=None,
        metadata={
            "help": "Lower lambda while training: {start, end, unit, shape, warmup_share, anneal_share, stages, "
            "max_loss}; null keeps norm_lambda throughout."
        },
    )
    train_only: str | None = field(
        default=None, metadata={"help": "`norms` freezes everything but the normalizations; null trains all."}
    )
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "Train a PEFT adapter on frozen pretrained weights: `lora`, or `norms` (LN-tuning: copies of the "
            "norms); null trains the weights themselves."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: float = field(default=32.0, metadata={"help": "LoRA updates are scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the LoRA matrices."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Last parts of module names to adapt; null: PEFT's default for the model type."}
    )
    lora_norms: bool = field(default=True, metadata={"help": "Train the norms as well, beside the LoRA matrices."})
    norm_order: str | None = field(
        default=None, metadata={"help": "compress-first or standardize-first; null is compress-first."}
    )
    norm_affine: bool | None = field(default=None, metadata={"help": "Learn a gain per feature; null is true."})
    norm_bias: bool | None = field(
        default=None, metadata={"help": "Learn a bias per feature; null takes the default of the model type."}
    )
    norm_lambda_learned: bool | None = field(
        default=None, metadata={"help": "Learn lambda, one a norm, from the value it would keep; null is false."}
    )
    norm_depth_scale: str | None = field(
        default=None,
        metadata={"help": "`sqrt` divides norms before attention and MLP by the root of their layer; null does not."},
    )
    norm_scope: list[str] | None = field(
        default=None,
        metadata={
            "help": "Which norms are swapped: all, or some of final, pre-attention and pre-mlp; the others stay the "
            "host's. null is all."
        },
    )
    norm_exclude: list[str] | None = field(
        default=None,
        metadata={
            "help": "Norms that stay the host's: names, last parts of paths, or patterns (layers.0.*); null: none."
        },
    )
    norm_embedding_scale: bool | None = field(
        default=None,
        metadata={
            "help": "Learn a factor on the token embeddings, from the square root of the width; null does where the "
            "norm is published with it (LLaMA with dyt or derf)."
        },
    )


@dataclass
class DataArguments:
    """Which text, cut how."""

    # How a global batch of text is cut into micro-batches changes nothing but rounding.
    also_bound: ClassVar[frozenset[str]] = frozenset()
    free: ClassVar[frozenset[str]] = frozenset({"max_bad_records", "prepare_workers"})
    # Keys that came later: at their defaults they leave the id of a run as it was without them.
    later: ClassVar[frozenset[str]] = frozenset(
        {"corpus_seed", "corpus_stopping_strategy", "validation_corpus", "sample_by", "messages_column"}
        | {"chat_template"}
    )

    corpus: str | list[object] = field(
        default="embedded",
        metadata={
            "help": "`embedded`, a local file, folder or pattern (data/*.jsonl), a data set on the Hub, a list of "
            "them, or a mixture by tokens: [{name: a.txt, weight: 7}, {name: b/, weight: 3}]."
        },
    )
    corpus_seed: int = field(default=0, metadata={"help": "Seed of the order in which a mixture draws documents."})
    corpus_stopping_strategy: str = field(
        default="first_exhausted",
        metadata={
            "help": "When a mixture of the corpus ends: first_exhausted, or all_exhausted, which reads a source that "
            "has run out again until each has been read once."
        },
    )
    corpus_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set, e.g. `en`."})
    corpus_split: str = field(default="train", metadata={"help": "Split of a Hub data set to train on."})
    corpus_revision: str | None = field(default=None, metadata={"help": "Commit or tag of a Hub data set."})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Split of a Hub data set to validate on; null holds out pieces of the training split."},
    )
    validation_corpus: None | str | list[object] = field(  # noqa: RUF036 - as HfArgumentParser needs it
        default=None,
        metadata={
            "help": "Text of its own to validate on, named as `corpus` is, without weights; null holds out pieces of "
            "the corpus."
        },
    )
    sample_by: str = field(
        default="document",
        metadata={"help": "What is one document in plain text: `document`, the whole file; `paragraph`; or `line`."},
    )
    text_column: str = field(default="text", metadata={"help": "Column or key that holds the text."})
    prompt_column: str | None = field(
        default=None,
        metadata={"help": "Column or key of prompts, which are read but not predicted; goes with completion_column."},
    )
    completion_column: str | None = field(
        default=None,
        metadata={"help": "Column or key of the text that follows a prompt; the loss falls on its tokens alone."},
    )
    messages_column: str | None = field(
        default=None,
        metadata={
            "help": "Column or key of conversations, lists of {role, content}, e.g. `messages`: the tokenizer's chat "
            "template makes text of them, and the loss falls on the assistant's turns alone."
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "`chatml`, or a file with a Jinja chat template; null takes the tokenizer's own."},
    )
    tokenizer: str = field(
        default="train",
        metadata={"help": "`train` a byte-level BPE on the corpus, or a tokenizer's folder or Hub name."},
    )
    tokenizer_vocab_size: int | None = field(
        default=None, metadata={"help": "Entries of a trained tokenizer; null takes model.vocab_size."}
    )
    block_size: int = field(default=256, metadata={"help": "Tokens in a training sequence."})
    token_budget: int | None = field(
        default=None,
        metadata={"help": "Most training tokens to prepare; null: all of a local corpus, a run's worth of a Hub one."},
    )
    validation_fraction: float = field(
        default=0.02, metadata={"help": "Share of the text to hold out, in pieces spread over the corpus."}
    )
    validation_tokens: int = field(default=1_000_000, metadata={"help": "Most validation tokens to keep."})
    max_bad_records: int = field(
        default=100, metadata={"help": "Unreadable records to skip, counted and named, before stopping."}
    )
    prepare_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that tokenize; the blocks do not depend on it. null: one a core, at most 8."},
    )

    @property
    def held_out(self) -> float | None:
        """The share of the text that is held out; None where the validation text is another."""
        return None if self.validation_split or self.validation_corpus else self.validation_fraction

    @property
    def masked(self) -> bool:
        """Whether some tokens are read and not predicted."""
        return self.prompt_column is not None or self.messages_column is not None


@dataclass
class RunArguments(TrainingArguments):
    """Everything of TrainingArguments, with the defaults of a pretraining run, plus a few keys of our own."""

    free: ClassVar[frozenset[str]] = frozenset(
        {"resume", "grad_spike_factor", "dry_run", "force", "sample_prompt", "sample_steps", "processes", "license"}
        | {"record_shapes"}
    )

    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps; exactly this many are taken."})
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Sequences a step over all processes; gradient_accumulation_steps follows from it. "
            "null: per_device_train_batch_size x gradient_accumulation_steps x processes."
        },
    )
    resume: str = field(
        default="auto",
        metadata={"help": "`auto`: the newest complete checkpoint of the run, if any; a checkpoint's path; `never`."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "End the run after this many validations in a row without a better loss, and keep the weights of "
            "that step; null takes all max_steps."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "Nats by which a validation loss must be below the best one to count as better."}
    )
    grad_spike_factor: float | None = field(
        default=1000.0,
        metadata={
            "help": "Stop, before it is saved, at a gradient this many times the median of the last 64 steps; "
            "null never does."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Print the plan and stop; reads no data and no weights, writes nothing."},
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Identifier of the licence that you give the model, e.g. apache-2.0. null: none is claimed."},
    )
    sample_prompt: str = field(default="The", metadata={"help": "Start of the text generated at the end."})
    sample_steps: int | None = field(
        default=None, metadata={"help": "Steps between two texts generated while it trains; null: at the end alone."}
    )
    force: bool = field(
        default=False, metadata={"help": "Try a plan that needs more memory than there is, instead of refusing it."}
    )
    record_shapes: bool = field(
        default=False,
        metadata={"help": "Log kurtosis, effective rank and spread behind each norm; costs time, changes nothing."},
    )
    processes: int | None = field(
        default=None,
        metadata={"help": "Processes that the run must have, where they change the model (images); null: as launched."},
    )

    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Shape of the learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logged lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide nan losses; never wanted here."})
    eval_strategy: IntervalStrategy | str = field(default="steps", metadata={"help": "When to validate: no, steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; null keeps all."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for unused parameters at every step; there are none here."}
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - as in TrainingArguments
        default="none", metadata={"help": "Trackers: none, tensorboard, wandb, trackio."}
    )
