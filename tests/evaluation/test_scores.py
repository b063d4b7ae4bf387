# SPDX-License-Identifier: Apache-2.0
"""Scores: worked examples, the table of chance levels against the installed harness, what is called an improvement."""

import doctest
import math
import random
from pathlib import Path

import pytest

from ibnorm_hf.evaluation import scores
from ibnorm_hf.evaluation.bounds import BBH_CHOICES, BENCHMARKS, LEAVES
from ibnorm_hf.evaluation.scores import Difference, Measured, combine, difference, normalize, standard_error


def test_worked_examples() -> None:
    result = doctest.testmod(scores)
    assert result.attempted >= 9 and result.failed == 0


@pytest.fixture(scope="module")
def harness() -> dict[str, dict]:
    """The installed harness's own definitions of the leaves, by task name."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = Path(str(lm_eval.__file__)).parent / "tasks" / "leaderboard"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    assert set(manager.all_subtasks) == set(LEAVES)
    out = {}
    for name in manager.all_subtasks:
        entry = manager.task_index[name]
        out[name] = {"folder": entry.yaml_path.parent, **entry.cfg}
    return out


def test_versions_shots_and_metrics_are_the_harness_s(harness: dict[str, dict]) -> None:
    for task, leaf in LEAVES.items():
        config = harness[task]
        assert config["metadata"]["version"] == leaf.version, task
        # MuSR's files give no number, for which the harness takes 0.
        assert config.get("num_fewshot", 0) == leaf.shots, task
        assert set(leaf.metrics) <= {m["metric"] for m in config["metric_list"]}, task


def test_chance_of_bbh_and_gpqa_is_one_over_the_harness_s_choices(harness: dict[str, dict]) -> None:
    for name, choices in BBH_CHOICES.items():
        config = harness[f"leaderboard_bbh_{name}"]
        assert len(config["doc_to_choice"]) == choices, name
        assert LEAVES[f"leaderboard_bbh_{name}"].chance == 1 / choices
    for name in ("main", "diamond", "extended"):
        config = harness[f"leaderboard_gpqa_{name}"]
        assert LEAVES[config["task"]].chance == 1 / len(config["doc_to_choice"])


def test_subtasks_of_each_benchmark_are_the_harness_s_groups() -> None:
    import lm_eval
    import yaml

    folder = Path(str(lm_eval.__file__)).parent / "tasks" / "leaderboard"
    groups = {}
    for path in folder.rglob("_*.yaml"):
        if "group" in (content := yaml.safe_load(path.read_text().replace("!function", ""))):
            groups[content["group"]] = content["task"]
    for benchmark in BENCHMARKS:
        names = [leaf.task for leaf in benchmark.leaves]
        assert sorted(groups.get(benchmark.group, [benchmark.group])) == sorted(names)
    assert len(LEAVES) == 39


def test_scores_do_not_leave_their_range() -> None:
    for chance in (0.0, 0.1, 0.25, 0.5):
        assert normalize(chance, chance) == 0 and normalize(1.0, chance) == 100
        assert normalize(0.0, chance) == 0


def test_a_guesser_is_at_chance_about_95_percent_of_the_time() -> None:
    generator, marks = random.Random(0), []
    for _ in range(2000):
        raw = sum(generator.random() < 0.25 for _ in range(448)) / 448
        marks.append(Measured("", raw, standard_error(raw, math.sqrt(raw * (1 - raw) / 447), 448), 448, 0.25).mark)
    assert 0.93 < marks.count("at chance") / len(marks) < 0.98


def test_marks() -> None:
    def mark(raw: float, stderr: float, n: int = 400, chance: float = 0.25) -> str:
        return Measured("", raw, stderr, n, chance).mark

    assert mark(0.29, 0.022) == "at chance"
    assert mark(0.30, 0.022) == ""
    assert mark(0.15, 0.022) == "below chance"
    # All wrong on two questions shows no spread and proves nothing.
    assert mark(0.0, standard_error(0.0, 0.0, 2), 2) == "at chance"
    assert mark(0.0, standard_error(0.0, 0.0, 1000), 1000, 0.0) == "at chance"


def test_a_missing_or_zero_standard_error_is_replaced_by_a_cautious_one() -> None:
    for reported in (None, 0.0, math.nan):
        assert standard_error(1.0, reported, 1) > 0.4
        assert standard_error(0.0, reported, 1324) == pytest.approx(7.5e-4, rel=0.02)


def test_means_propagate_errors() -> None:
    parts = [Measured("a", 0.6, 0.03, 100, 0.5), Measured("b", 0.4, 0.04, 200, 0.2)]
    mean = combine("m", parts)
    assert mean.n == 300 and mean.raw == pytest.approx(0.5) and mean.chance == pytest.approx(0.35)
    assert mean.stderr == pytest.approx(0.025)
    assert mean.score_stderr == pytest.approx(math.hypot(100 * 0.03 / 0.5, 100 * 0.04 / 0.8) / 2)


def test_differences_under_two_standard_errors_are_no_improvement() -> None:
    first, second = Measured("x", 0.50, 0.03, 300, 0.25), Measured("x", 0.58, 0.04, 300, 0.25)
    gap = difference(second, first)
    assert gap.points == pytest.approx(100 * 0.08 / 0.75)
    assert gap.stderr == pytest.approx(100 * 0.05 / 0.75)
    assert gap.verdict == "not an improvement"
    assert difference(first, first).verdict == "not an improvement"
    assert Difference(0.0, 0.0).verdict == "not an improvement"
