# SPDX-License-Identifier: Apache-2.0
"""`ibnorm-hf eval --check`: a good folder passes in seconds, a bad one gets a line that says where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ibnorm_hf.evaluation.bounds import LEAVES
from ibnorm_hf.evaluation.offline import SOURCES

from .conftest import Place
from .offline_data import write_dataset


def test_the_table_of_sources_is_the_harness_s() -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = Path(str(lm_eval.__file__)).parent / "tasks" / "leaderboard"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    assert set(SOURCES) == set(LEAVES)
    for task, source in SOURCES.items():
        config = manager.task_index[task].cfg
        assert (config["dataset_path"], config.get("dataset_name")) == (source.repo, source.config), task
        asked = config.get("test_split") or config.get("validation_split")
        needed = {asked, *(config[key] for key in ("training_split", "fewshot_split") if config.get(key))}
        assert asked == source.questions and needed == set(source.splits), task


def test_good_data_passes(command: Callable, place: Place) -> None:
    code, out, _ = command("eval", "--check", "--data", place.data)
    assert code == 0 and "data for 39 tasks can be read; 39 of 39 have another size than the full set" in out
    assert out.count("\n") == 41


@pytest.fixture
def spoil(place: Place, tmp_path: Path) -> Callable[..., Path]:
    """A copy of one data set with the rows of some files passed through a function."""

    def make(repo: str, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        shutil.copytree(place.data / repo, tmp_path / repo)
        for path in (tmp_path / repo).glob(file):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))
        return tmp_path

    return make


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {key: value for key, value in row.items() if key != name}


MMLU, MUSR, MATH = "TIGER-Lab/MMLU-Pro", "TAUR-Lab/MuSR", "DigitalLearningGmbH/MATH-lighteval"
IFEVAL = "wis-k/instruction-following-eval"


@pytest.mark.parametrize(
    ("repo", "file", "change", "tasks", "message"),
    [
        (MMLU, "default-*.jsonl", without("options"), "leaderboard_mmlu_pro", "split test lacks the column options"),
        (
            MMLU,
            "default-validation.jsonl",
            lambda row: {**row, "answer": "K"},
            "leaderboard_mmlu_pro",
            "split validation row 0: answer 'K' is not among the options",
        ),
        (
            MMLU,
            "default-test.jsonl",
            lambda row: {**row, "answer_index": "two"},
            "leaderboard_mmlu_pro",
            "row 0: answer_index is str, it must be int",
        ),
        (
            MUSR,
            "default-team_allocation.jsonl",
            lambda row: {**row, "choices": "Ada, Ben"},
            "leaderboard_musr",
            "choices is not a list written as text",
        ),
        (
            MATH,
            "algebra-test.jsonl",
            lambda row: {**row, "level": "Level 4"},
            "leaderboard_math_hard",
            "has no question to ask",
        ),
        (
            MATH,
            "geometry-test.jsonl",
            lambda row: {**row, "solution": "It is 4."},
            "leaderboard_math_geometry_hard",
            "has no \\boxed{} answer",
        ),
        (
            IFEVAL,
            "default-train.jsonl",
            lambda row: {**row, "kwargs": row["kwargs"][:-1]},
            "leaderboard_ifeval",
            "differ in length",
        ),
    ],
)
def test_wrong_schemas_get_one_line(
    refused: Callable, spoil: Callable, repo: str, file: str, change: Callable, tasks: str, message: str
) -> None:
    folder = spoil(repo, file, change)
    line = refused("eval", "--check", "--data", folder, "--tasks", tasks)
    assert message in line and repo in line


def test_an_evaluation_checks_its_data_first(refused: Callable, spoil: Callable, models: Callable) -> None:
    folder = spoil(MMLU, "default-test.jsonl", without("question"))
    line = refused("eval", models("ibnorm_llama"), "--data", folder, "--tasks", "leaderboard_mmlu_pro")
    assert "its files differ: there are 1 new columns ({'question'})" in line


def test_missing_folders_splits_and_configurations_get_one_line(
    refused: Callable, place: Place, tmp_path: Path
) -> None:
    check = ("eval", "--check", "--data")
    assert "does not exist" in refused(*check, tmp_path / "none")
    gated = refused(*check, tmp_path, "--tasks", "leaderboard_gpqa")
    assert "GPQA is gated" in gated and "--partial" in gated
    assert "is missing; download it there" in refused(*check, tmp_path, "--tasks", "leaderboard_musr")
    write_dataset(tmp_path / MUSR, {"default": {"train": [{"narrative": "x"}]}})
    assert "has no split murder_mysteries (it has train)" in refused(*check, tmp_path, "--tasks", "leaderboard_musr")
    write_dataset(tmp_path / "SaylorTwift" / "bbh", {"snarks": {"test": [{"input": "x", "target": "(A)"}]}})
    line = refused(*check, tmp_path, "--tasks", "leaderboard_bbh_navigate")
    assert "configuration navigate" in line and "README.md must list" in line


def test_truncated_files_get_one_line(refused: Callable, place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.data / MUSR, tmp_path / MUSR)
    path = tmp_path / MUSR / "default-murder_mysteries.jsonl"
    path.write_text(path.read_text()[:-40])
    assert "cannot be read" in refused("eval", "--check", "--data", tmp_path, "--tasks", "leaderboard_musr")


def test_the_check_says_what_it_does_not_know(refused: Callable, tmp_path: Path) -> None:
    assert "leaderboard's tasks only" in refused("eval", "--check", "--data", tmp_path, "--tasks", "arc_easy")
    assert "needs --data" in refused("eval", "--check")
