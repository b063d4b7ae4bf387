# SPDX-License-Identifier: Apache-2.0
"""What the Open LLM Leaderboard II measures: its six benchmarks, their leaf tasks, metrics and chance levels.

The numbers are the harness's own (tests derive them again from the installed one); they stand here so that results can
be scored on a machine without it, and so that a later harness that asks something else is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """One harness task.

    Args:
        task: its name in the harness.
        metrics: the raw metric is the mean of these (two for IFEval, one elsewhere), in [0, 1].
        chance: expected raw metric of a guesser, the lower bound of the score.
        version, shots: what the leaderboard runs; other results are not its numbers.
        documents: size of the full set.
    """

    task: str
    metrics: tuple[str, ...]
    chance: float
    version: float
    shots: int
    documents: int


@dataclass(frozen=True)
class Benchmark:
    """One column of the leaderboard: the unweighted mean of the scores of its leaves."""

    name: str
    group: str
    leaves: tuple[Leaf, ...]


# Number of answers to choose from.
BBH_CHOICES = {
    "boolean_expressions": 2,
    "causal_judgement": 2,
    "date_understanding": 6,
    "disambiguation_qa": 3,
    "formal_fallacies": 2,
    "geometric_shapes": 11,
    "hyperbaton": 2,
    "logical_deduction_five_objects": 5,
    "logical_deduction_seven_objects": 7,
    "logical_deduction_three_objects": 3,
    "movie_recommendation": 6,
    "navigate": 2,
    "object_counting": 19,
    "penguins_in_a_table": 5,
    "reasoning_about_colored_objects": 18,
    "ruin_names": 6,
    "salient_translation_error_detection": 6,
    "snarks": 2,
    "sports_understanding": 2,
    "temporal_sequences": 4,
    "tracking_shuffled_objects_five_objects": 5,
    "tracking_shuffled_objects_seven_objects": 7,
    "tracking_shuffled_objects_three_objects": 3,
    "web_of_lies": 2,
}
_BBH_SMALLER = {"causal_judgement": 187, "penguins_in_a_table": 146, "snarks": 178}
_MATH_DOCUMENTS = {
    "algebra": 307,
    "counting_and_prob": 123,
    "geometry": 132,
    "intermediate_algebra": 280,
    "num_theory": 154,
    "prealgebra": 193,
    "precalculus": 135,
}
# name: (choices, documents)
_GPQA = {"diamond": (4, 198), "extended": (4, 546), "main": (4, 448)}
_MUSR = {"murder_mysteries": (2, 250), "object_placements": (5, 256), "team_allocation": (3, 250)}
_IFEVAL = ("inst_level_strict_acc", "prompt_level_strict_acc")

BENCHMARKS = (
    Benchmark(
        "IFEval",
        "leaderboard_instruction_following",
        (Leaf("leaderboard_ifeval", _IFEVAL, 0.0, 3.0, 0, 541),),
    ),
    Benchmark(
        "BBH",
        "leaderboard_bbh",
        tuple(
            Leaf(f"leaderboard_bbh_{name}", ("acc_norm",), 1 / choices, 1.0, 3, _BBH_SMALLER.get(name, 250))
            for name, choices in BBH_CHOICES.items()
        ),
    ),
    Benchmark(
        "MATH Lvl 5",
        "leaderboard_math_hard",
        tuple(
            Leaf(f"leaderboard_math_{name}_hard", ("exact_match",), 0.0, 3.0, 4, documents)
            for name, documents in _MATH_DOCUMENTS.items()
        ),
    ),
    Benchmark(
        "GPQA",
        "leaderboard_gpqa",
        tuple(
            Leaf(f"leaderboard_gpqa_{name}", ("acc_norm",), 1 / choices, 1.0, 0, documents)
            for name, (choices, documents) in _GPQA.items()
        ),
    ),
    Benchmark(
        "MuSR",
        "leaderboard_musr",
        tuple(
            Leaf(f"leaderboard_musr_{name}", ("acc_norm",), 1 / choices, 1.0, 0, documents)
            for name, (choices, documents) in _MUSR.items()
        ),
    ),
    Benchmark("MMLU-PRO", "leaderboard_mmlu_pro", (Leaf("leaderboard_mmlu_pro", ("acc",), 0.1, 0.1, 5, 12032),)),
)
LEAVES = {leaf.task: leaf for benchmark in BENCHMARKS for leaf in benchmark.leaves}
