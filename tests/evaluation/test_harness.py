# SPDX-License-Identifier: Apache-2.0
"""The whole leaderboard offline, against the stock command, interrupted, and without IFEval's sentence model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ibnorm_hf import cli
from ibnorm_hf.evaluation.bounds import LEAVES

from .conftest import SHORT, Place, without_network

Command = Callable[..., tuple[int, str, str]]


def results_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def raw_numbers(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every metric and standard error, by task."""
    return {
        task: {key: value for key, value in row.items() if "," in key}
        for task, row in content["results"].items()
        if task in LEAVES
    }


def run_leaderboard(model: Path, data: Path, output: Path) -> float:
    """Evaluate the whole group, by the program itself, and return the processor's seconds."""
    started = time.process_time()  # not the clock on the wall, which other programs slow down
    assert cli.main(["eval", str(model), "--data", str(data), "--output_path", str(output), *SHORT]) == 0
    return time.process_time() - started


def check_whole(folder: Path) -> None:
    content = results_of(folder)
    assert set(content["results"]) == set(LEAVES) and content["config"]["limit"] == 2
    assert content["ibnorm"]["excluded"] == {}
    assert {entry["effective"] for entry in content["n-samples"].values()} == {2}
    assert sum(row.get("acc_norm,none", 0) for row in content["results"].values()) > 0


@pytest.fixture(scope="module")
def llama(place: Place, models: Callable) -> tuple[Path, float]:
    """Results of the tiny LLaMA on the whole group, and the seconds they took."""
    output = place.root / "out" / "ibnorm_llama"
    with without_network(place):
        return output, run_leaderboard(models("ibnorm_llama"), place.data, output)


@pytest.fixture(scope="module")
def llama_results(llama: tuple[Path, float]) -> Path:
    return llama[0]


def test_whole_leaderboard_of_llama(command: Command, llama: tuple[Path, float]) -> None:
    folder, seconds = llama
    check_whole(folder)
    assert seconds < 120
    code, out, _ = command("leaderboard", folder, "--format", "json")
    assert code == 0 and len(json.loads(out)["models"][0]["rows"]) == 46


def test_whole_leaderboard_of_gpt2(command: Command, place: Place, models: Callable, llama_results: Path) -> None:
    output = place.root / "out" / "ibnorm_gpt2"
    assert run_leaderboard(models("ibnorm_gpt2"), place.data, output) < 120
    check_whole(output)
    code, out, _ = command("leaderboard", llama_results, output)
    assert code == 0 and "Side by side" in out


def test_stock_harness_on_the_export_gives_the_same_numbers(
    place: Place, models: Callable, llama_results: Path
) -> None:
    from ibnorm_hf.hub.export import export

    exported, output = place.root / "exported", place.root / "stock"
    export(models("ibnorm_llama"), exported)
    done = place.run(
        *("-m", "lm_eval", "run", "--model", "hf", "--tasks", "leaderboard", *SHORT),
        *("--model_args", f"pretrained={exported},trust_remote_code=True,backend=causal"),
        *("--output_path", str(output)),
        cwd=place.data,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stock = results_of(output)
    assert "ibnorm_hf" not in done.stderr  # the checkpoint's own code ran
    assert raw_numbers(stock) == raw_numbers(results_of(llama_results))


MUSR = ("--tasks", "leaderboard_musr,leaderboard_gpqa")


@pytest.mark.faults
def test_a_killed_evaluation_goes_on_from_the_finished_tasks(
    command: Command, place: Place, models: Callable, llama_results: Path
) -> None:
    output = place.root / "killed"
    asked = ("--data", str(place.data), "--output_path", str(output), *MUSR, *SHORT)
    words = ("eval", str(models("ibnorm_llama")), *asked)
    process = subprocess.Popen(
        [sys.executable, "-m", "ibnorm_hf.cli", *words], cwd=place.root, env=place.environment, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(len(json.loads(path.read_text())["results"]) >= 2 for path in output.glob("results_*.json")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    before = results_of(output)
    assert process.returncode == -signal.SIGKILL and 2 <= len(before["results"]) < 6
    code, _, err = command(*words)
    assert code == 0 and err.count("finished earlier") == len(before["results"])
    after = results_of(output)
    kept = before["ibnorm"]["seconds"]
    assert {task: after["ibnorm"]["seconds"][task] for task in kept} == kept  # not run again
    whole = raw_numbers(results_of(llama_results))
    assert raw_numbers(after) == {task: whole[task] for task in after["results"]} and len(after["results"]) == 6


def test_other_settings_or_other_data_are_not_taken_for_finished(
    command: Command, place: Place, models: Callable, tmp_path: Path
) -> None:
    task = ("--tasks", "leaderboard_musr_team_allocation", "--output_path", tmp_path / "out")
    data = tmp_path / "data"
    shutil.copytree(place.data / "TAUR-Lab", data / "TAUR-Lab")
    words = ("eval", models("ibnorm_llama"), "--data", data, *task)
    assert "finished earlier" not in command(*words, "--limit", "2")[2]
    assert "finished earlier" in command(*words, "--limit", "2")[2]
    assert "finished earlier" not in command(*words, "--limit", "1")[2]
    assert len(list((tmp_path / "out").glob("results_*.json"))) == 2
    file = data / "TAUR-Lab" / "MuSR" / "default-team_allocation.jsonl"
    file.write_text(file.read_text().replace("hurry", "rush"))
    assert "finished earlier" not in command(*words, "--limit", "2")[2]


def test_samples_are_logged_on_request(command: Command, place: Place, models: Callable, tmp_path: Path) -> None:
    words = ("--tasks", "leaderboard_musr_team_allocation", "--output_path", tmp_path, "--log_samples")
    code, _, err = command("eval", models("ibnorm_llama"), "--data", place.data, *words)
    assert code == 0, err
    (path,) = tmp_path.glob("samples_*/leaderboard_musr_team_allocation.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    content = results_of(tmp_path)
    raw = content["results"]["leaderboard_musr_team_allocation"]["acc_norm,none"]
    assert len(samples) == 3 and sum(s["acc_norm"] for s in samples) / 3 == pytest.approx(raw)


def test_a_vanilla_model_takes_the_same_command(
    command: Command, place: Place, models: Callable, llama_results: Path, tmp_path: Path
) -> None:
    code, _, err = command("eval", models("llama"), "--data", place.data, "--output_path", tmp_path, *MUSR, *SHORT)
    assert code == 0, err
    theirs, ours = results_of(tmp_path), results_of(llama_results)
    assert all(theirs["task_hashes"][task] == ours["task_hashes"][task] for task in theirs["results"])
    assert theirs["ibnorm"]["settings"]["model_sha256"] != ours["ibnorm"]["settings"]["model_sha256"]


def test_without_a_sentence_model_the_rest_of_ifeval_is_scored_and_marked(
    command: Command, refused: Callable, place: Place, models: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk
    from lm_eval.tasks.ifeval import instructions_util  # its import would try to download

    instructions_util._get_sentence_tokenizer.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [])
    words = ("eval", models("ibnorm_llama"), "--data", place.data, "--output_path", tmp_path)
    ifeval = ("--tasks", "leaderboard_ifeval", "--gen_kwargs", "max_gen_toks=8")
    code, out, err = command(*words, *ifeval)
    assert code == 0 and "1 of 3 questions are left out" in err and "incomplete: leaderboard_ifeval" in out
    assert "IFEval's sentence model is not here" in err  # said before the work, too
    content = results_of(tmp_path)
    assert content["ibnorm"]["excluded"]["leaderboard_ifeval"]["scored"] == 2
    assert content["n-samples"]["leaderboard_ifeval"]["effective"] == 2
    line = refused("leaderboard", tmp_path)
    assert "leaderboard_ifeval (NLTK's punkt_tab is not here; 1 of 3 questions are left out)" in line
    _, table, _ = command("leaderboard", tmp_path, "--partial")
    assert "incomplete: no mean" in table
    monkeypatch.setattr(nltk.data, "path", [str(place.root / "nltk")])
    code, _, err = command(*words, *ifeval)
    assert code == 0 and "finished earlier" not in err  # the part is not taken for the whole
    content = results_of(tmp_path)
    assert content["ibnorm"]["excluded"] == {} and content["n-samples"]["leaderboard_ifeval"]["effective"] == 3


def test_stock_command_refuses_ifeval_without_a_sentence_model_before_the_work(place: Place) -> None:
    environment = {**place.environment, "NLTK_DATA": str(place.root / "nowhere"), "HOME": str(place.root)}
    done = subprocess.run(
        [sys.executable, "-m", "ibnorm_hf.evaluation", "run", "--model", "ibnorm", "--tasks", "leaderboard"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "IFEval needs a sentence model" in done.stderr
    assert "Traceback" not in done.stderr


def test_stock_arguments_reach_the_harness_with_our_model(
    place: Place, models: Callable, llama_results: Path, tmp_path: Path
) -> None:
    task = "leaderboard_musr_murder_mysteries"
    done = place.run(
        *("-m", "ibnorm_hf.evaluation", "run", "--model", "ibnorm", "--tasks", task, *SHORT, "--log_samples"),
        *("--model_args", f"pretrained={models('ibnorm_llama')}", "--output_path", str(tmp_path), "--seed", "7"),
        cwd=place.data,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    content = results_of(tmp_path)
    assert content["config"]["random_seed"] == 7 and list(tmp_path.rglob("samples_*.jsonl"))
    assert raw_numbers(content)[task] == raw_numbers(results_of(llama_results))[task]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "leaderbord"), "task 'leaderbord' is unknown"),
        (("--tasks", "leaderboard_musr", "--fewshot_as_multiturn", "true"), "apply_chat_template"),
        (("--tasks", "leaderboard_musr", "--wandb_args", "project=x"), "--wandb_args belongs to the stock command"),
        (("--tasks", "leaderboard_musr", "--predict_only", "--config", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_wrong_arguments_get_one_line(
    refused: Callable, place: Place, models: Callable, words: tuple[str, ...], message: str, monkeypatch: Any
) -> None:
    from ibnorm_hf.evaluation import runner

    monkeypatch.setattr(runner, "task_manager", _only_leaderboard)
    assert message in refused("eval", models("ibnorm_llama"), *words)
    assert os.getcwd() == str(place.root)


def _only_leaderboard(config: Any, names: Any) -> Any:
    # The index of all 14,000 tasks takes twelve seconds.
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = Path(str(lm_eval.__file__)).parent / "tasks" / "leaderboard"
    return TaskManager(include_path=str(folder), include_defaults=False)
