# SPDX-License-Identifier: Apache-2.0
"""The model that was named is the one that is measured, whatever its folder is called and whatever else is asked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Place
from .test_harness import raw_numbers, results_of

TASK = ("--tasks", "leaderboard_musr_team_allocation", "--limit", "2", "--batch_size", "4")


def test_a_folder_s_name_is_not_read_as_arguments(
    command: Callable, place: Place, models: Callable, tmp_path: Path
) -> None:
    other = models("ibnorm_gpt2")
    model = shutil.copytree(models("ibnorm_llama"), tmp_path / f"a,pretrained={other.name},max_length=64")
    numbers = {}
    for name, folder in (("plain", models("ibnorm_llama")), ("odd", model), ("other", other)):
        output = tmp_path / name
        code, _, err = command("eval", folder, "--data", place.data, "--output_path", output, *TASK, "--log_samples")
        assert code == 0, err
        content = results_of(output)
        assert content["model_name"] == str(folder) and content["config"]["model_args"]["pretrained"] == str(folder)
        (samples,) = output.rglob("*.jsonl")
        numbers[name] = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
        assert raw_numbers(content)
    assert numbers["odd"] == numbers["plain"] != numbers["other"]


@pytest.mark.parametrize("key", ["pretrained", "peft", "delta", "subfolder"])
def test_no_option_names_another_model(
    refused: Callable, models: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    other = str(models("ibnorm_gpt2"))
    words = ("eval", models("ibnorm_llama"), *TASK)
    assert f"{key}={other} would put another model's results" in refused(*words, "--model_args", f"{key}={other}")
    for content in (f"model_args: {{{key}: {other}}}", f"model_args: {key}={other}"):
        file = tmp_path / "asked.yaml"
        file.write_text(content)
        assert f"{key}={other} would put another model's results" in refused(*words, "--config", file)


def test_no_option_names_another_kind_of_model(refused: Callable, models: Callable) -> None:
    assert "--model dummy belongs to the stock command" in refused("eval", models("llama"), *TASK, "--model", "dummy")


def test_options_of_a_file_hold_unless_the_command_says_otherwise(models: Callable, tmp_path: Path) -> None:
    from ibnorm_hf.evaluation.options import configure
    from ibnorm_hf.evaluation.target import resolve

    file = tmp_path / "asked.yaml"
    file.write_text("batch_size: 3\nlimit: 7\nmodel_args: {dtype: bfloat16, max_length: 99}\n")
    target = resolve(str(models("llama")))
    config = configure(["--config", str(file), "--model_args", "max_length=50"], target, ["a"], tmp_path)
    assert (config.batch_size, config.limit, config.tasks) == (3, 7, ["a"])
    assert config.model_args == {"pretrained": target.pretrained, "dtype": "bfloat16", "max_length": 50}
    assert configure([], target, ["a"], tmp_path).batch_size == "auto"
