# SPDX-License-Identifier: Apache-2.0
"""Models with few positions: what does not fit is clamped and said, what cannot be is refused before the work."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from . import models as tiny
from .conftest import Place
from .test_harness import results_of

SNARKS, IFEVAL = "leaderboard_bbh_snarks", "leaderboard_ifeval"


@pytest.fixture(scope="module")
def short(place: Place) -> Path:
    """A GPT-2 of 64 positions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "POSITIONS", 64)
        return tiny.save_model("ibnorm_gpt2", place.root / "gpt2-64")


def test_generation_and_prompts_are_cut_to_what_fits_and_it_is_said(
    command: Callable, place: Place, short: Path, tmp_path: Path
) -> None:
    words = ("--data", place.data, "--output_path", tmp_path, "--limit", "1", "--tasks", f"{SNARKS},{IFEVAL}")
    code, out, err = command("eval", short, *words)
    assert code == 0, err
    assert f"note: {IFEVAL}: 32 of 1,280 new tokens" in out and "note: measured with --limit 1" in out
    assert re.search(rf"note: {SNARKS}: 2 of 2 prompts cut \(the longest to 64 of \d+ tokens\)", out)
    assert f"{IFEVAL}: 32 new tokens instead of 1280, to fit 64 positions" in err
    content = results_of(tmp_path)
    ours = content["ibnorm"]
    assert ours["precision"] == {"dtype": "float32", "autocast": None}
    assert ours["clamped"] == {IFEVAL: {"asked": 1280, "given": 32}}
    assert content["configs"][IFEVAL]["generation_kwargs"]["max_gen_toks"] == 32
    assert content["config"]["gen_kwargs"] is None and content["config"]["limit"] == 1  # as it was asked
    prompts = ours["prompts"][SNARKS]
    assert prompts["prompts"] == prompts["cut"] == 2 and prompts["longest"] > prompts["positions"] == 64
    assert f"{SNARKS}: 2 of 2 prompts are cut" in err


def test_nothing_changes_where_it_fits(command: Callable, place: Place, models: Callable, tmp_path: Path) -> None:
    words = ("--data", place.data, "--output_path", tmp_path, "--limit", "1", "--tasks", f"{SNARKS},{IFEVAL}")
    assert command("eval", models("ibnorm_gpt2"), *words, "--gen_kwargs", "max_gen_toks=9")[0] == 0
    ours = results_of(tmp_path)["ibnorm"]
    assert not ours.get("clamped")
    assert {entry["cut"] for entry in ours["prompts"].values()} == {0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--apply_chat_template",), "needs a tokenizer with a chat template"),
        (("--limit", "0"), "--limit 0.0 asks no question"),
        (("--limit", "-3"), "--limit -3.0 asks no question"),
        (("--limit", "2.5"), "--limit 2.5 is neither a whole number nor a share"),
        (("--num_fewshot", "7"), f"{SNARKS} has 3 examples to give, and --num_fewshot is 7; give at most 3"),
        (("--num_fewshot", "-1"), "--num_fewshot -1 is below 0"),
        (("--batch_size", "0"), "--batch_size 0 is no whole number"),
        (("--batch_size", "many"), "--batch_size many is no whole number"),
        (("--model_args", "max_length=4096"), "max_length=4096 is beyond the model's 64 positions"),
        (("--samples", f'{{"{SNARKS}": [0, 99]}}'), f"asks question 99 of {SNARKS}, which has 0 to 2"),
        (("--samples", '{"leaderboard_gpqa_main": [0]}'), "names leaderboard_gpqa_main, which is not among the tasks"),
    ],
)
def test_what_the_harness_would_refuse_half_way_is_refused_before(
    refused: Callable, place: Place, short: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    ask = ("eval", short, "--data", place.data, "--output_path", tmp_path, "--tasks", SNARKS)
    assert message in refused(*ask, *words)
    assert not list(tmp_path.rglob("*.json"))


def test_what_breaks_on_the_way_is_one_sentence_and_keeps_what_is_finished(
    command: Callable, place: Place, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ibnorm_hf.evaluation.harness_model import IBNormLM

    def broken(self: object, *args: object, **kwargs: object) -> None:
        raise RuntimeError("the device is gone\nand more")

    monkeypatch.setattr(IBNormLM, "generate_until", broken)
    words = ("--data", place.data, "--output_path", tmp_path, "--limit", "1", "--tasks", f"{SNARKS},{IFEVAL}")
    code, _, err = command("eval", short, *words)
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 1 and f"{IFEVAL}: the harness stopped (RuntimeError: the device is gone and more)" in line
    assert set(results_of(tmp_path)["results"]) == {SNARKS}
