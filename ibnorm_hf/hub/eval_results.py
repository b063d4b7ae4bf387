# SPDX-License-Identifier: Apache-2.0
"""A run's scores in the two forms the Hub reads: ``model-index`` in the card, and ``.eval_results/*.yaml``."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..common import strict_yaml
from ..common.corpus import corpus_label
from .facts import Facts
from .results import MEASURES, is_full

# Data sets of the Hub behind the leaderboard's tasks, by the beginning of a task's name.
_DATASETS = {
    "leaderboard_ifeval": "wis-k/instruction-following-eval",
    "leaderboard_bbh": "SaylorTwift/bbh",
    "leaderboard_math": "DigitalLearningGmbH/MATH-lighteval",
    "leaderboard_gpqa": "Idavidrein/gpqa",
    "leaderboard_musr": "TAUR-Lab/MuSR",
    "leaderboard_mmlu_pro": "TIGER-Lab/MMLU-Pro",
}


def entries(facts: Facts, task: str) -> list[EvalResult]:
    """Every score for ``model-index``: validation on the held-out part of the corpus, leaderboard tasks raw."""
    corpus = facts.data.get("corpus", {})
    own = facts.recipe.get("validation_corpus")
    hub = corpus.get("kind") == "hub" and own is None
    name = corpus["name"] if hub else corpus_label(own or facts.recipe.get("corpus"))
    part = "all of it" if own else corpus.get("split") if hub else "held out"
    out = [
        EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=f"{name}, {part}",
            dataset_revision=corpus.get("revision") if hub else None,
            metric_type=key,
            metric_name=label,
            metric_value=facts.validation[key],
        )
        for key, label in MEASURES.items()
        if isinstance(facts.validation.get(key), int | float)
    ]
    for row, dataset in _subtasks(facts):
        out.append(
            EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=row["name"],
                metric_type="accuracy",
                metric_name=f"raw, chance {row['chance']:.4f}, stderr {row['stderr']:.4f}, n {row['n']}",
                metric_value=row["raw"],
            )
        )
    return out


def write_entries(facts: Facts, folder: Path) -> None:
    """Write ``.eval_results/leaderboard.yaml``, or remove what an earlier card left.

    Only scores on data sets of the Hub have this form; a corpus of one's own has no id to give.
    """
    shutil.rmtree(folder, ignore_errors=True)
    scores = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=row["name"],
            value=row["raw"],
            notes=f"chance {row['chance']:.4f}, stderr {row['stderr']:.4f}, n {row['n']}, score {row['score']:.2f}",
        )
        for row, dataset in _subtasks(facts)
    ]
    if scores:
        folder.mkdir(parents=True)
        text = strict_yaml.dumps(eval_result_entries_to_yaml(scores))
        (folder / "leaderboard.yaml").write_text(text, encoding="utf-8")


def _subtasks(facts: Facts) -> list[tuple[dict, str]]:
    """The full measurements; on a part of the questions, or of prompts, a number stands in the card alone."""
    out = []
    for row in facts.leaderboard.get("rows", []):
        dataset = next((d for start, d in _DATASETS.items() if str(row["name"]).startswith(start)), None)
        if row["level"] == "subtask" and dataset is not None and is_full(row, facts.leaderboard):
            out.append((row, dataset))
    return out
