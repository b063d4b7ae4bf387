# SPDX-License-Identifier: Apache-2.0
"""What is used of lm-eval beyond its documented functions, in one place."""

from __future__ import annotations

import functools
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .private import Parts, missing

# The first ones are methods of its model that ours overrides: renamed, ours would never be called.
EVALUATING = Parts(
    "lm_eval",
    "0.4.13",
    (
        *(f"lm_eval.models.huggingface:HFLM.{name}" for name in ("_get_config", "_create_tokenizer", "_create_model")),
        "lm_eval.api.model:TemplateLM._loglikelihood_tokens",
        "lm_eval._cli.harness:HarnessCLI",
        "lm_eval.loggers.evaluation_tracker:EvaluationTracker.save_results_samples",
        "torch.utils.collect_env:get_pretty_env_info",
    ),
)


def parse_words(words: Sequence[str]) -> Namespace:
    """Options of ``lm-eval run`` by the harness's own parser; what was not given is absent or None.

    Unknown words end in its usage message and exit code 2.
    """
    from lm_eval._cli.harness import HarnessCLI

    parser: ArgumentParser | None = getattr(HarnessCLI(), "_parser", None)
    if parser is None:
        raise missing("lm_eval", ["lm_eval._cli.harness:HarnessCLI._parser"], EVALUATING.seen)
    return parser.parse_args(["run", *words])


@functools.cache
def _environment() -> str:
    from torch.utils import collect_env

    return str(collect_env.get_pretty_env_info())


@contextmanager
def environment_described_once() -> Iterator[None]:
    """Describe the machine once: ``simple_evaluate`` does so at every call, by a dozen programs that take seconds."""
    from torch.utils import collect_env

    original = collect_env.get_pretty_env_info
    text = _environment()
    collect_env.get_pretty_env_info = lambda: text
    try:
        yield
    finally:
        collect_env.get_pretty_env_info = original


def write_samples(path: Path, samples: list[dict[str, Any]]) -> None:
    """A line a question, in the layout of the harness's own ``samples_<task>_<date>.jsonl``; replaces the file."""
    from lm_eval.loggers.evaluation_tracker import EvaluationTracker

    path.parent.mkdir(parents=True, exist_ok=True)
    tracker = EvaluationTracker(output_path=str(path.parent / "samples.json"))
    tracker.date_id = "new"
    written = path.parent / f"samples_{path.stem}_new.jsonl"
    written.unlink(missing_ok=True)
    tracker.save_results_samples(task_name=path.stem, samples=samples)  # type: ignore[arg-type]
    written.replace(path)
