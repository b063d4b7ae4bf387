# SPDX-License-Identifier: Apache-2.0
"""A card's "Beside baselines": from the report of the study that holds these very weights, and from nothing else."""

import json

import pytest

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.run import fingerprint
from ibnorm_hf.hub.card import write_card

from .conftest import VALIDATION, write

NOT_MEASURED = "Beside baselines: not measured."


def arm(difference, verdict, **more):
    low, high = (difference - 0.02, difference + 0.03) if isinstance(difference, float) else (0.0, 0.0)
    numbers = {"mean": 4.1, "difference": difference, "low": low, "high": high, "p": 0.0123, "n": 5}
    return {**numbers, "verdict": verdict, "learning_rate": 0.003, "seeds_to_decide": None, "diverged": 0, **more}


def report(run, **more):
    """The report of a study in whose folder the run stands."""
    arms = {
        "rmsnorm": arm(0.0, "equivalent"),
        "t": arm(-0.1234, "better"),
        "odd | `name`": arm(0.0567, "undecided", seeds_to_decide=41, diverged=2),
    }
    entry = {"run": run.name, "arm": "t", "phase": "claim", "budget": 1.0, "seed": 7, "measured": VALIDATION["loss"]}
    entries = [{**entry, "phase": "tuning"}, entry]
    content = {
        **{"baseline": "rmsnorm", "margin": 0.0215, "level": 0.99, "refused": [], "flips": [], "arms": arms},
        "budgets": {"1": {"seeds": [7, 8, 9, 10, 11], "error": 0.01, "arms": arms}},
        **{"study": "four", "metric": "loss", "unit": "nats", "key": "loss", "tuned": True},
        "runs": [{**line, "model_sha256": fingerprint([run / "model"])} for line in entries],
    }
    return {**content, **more}


@pytest.fixture
def studied(run):
    """The run in its study: STUDY/runs/one, STUDY/report/report.json."""
    write(run.parents[1] / "report" / "report.json", report(run))
    return run


def section(run, **words):
    text = write_card(run, **words).read_text()
    assert text.count("### Beside baselines") == 1
    return text.split("### Beside baselines\n")[1].split("\n### ")[0].strip()


def change(run, **more):
    write(run.parents[1] / "report" / "report.json", report(run, **more))


def test_without_a_study_nothing_is_said(run):
    assert section(run).startswith(NOT_MEASURED)


def test_the_card_says_what_the_report_says(studied):
    text = section(studied)
    assert text.startswith("Study `four`, arm `t`, budget 1x, seed 7.\n")
    assert "claim seeds 7, 8, 9, 10, 11, in nats, below 0 where an arm is better" in text
    assert "within 0.0215." in text and "tuned on the same grid" in text
    assert "| `t` (this model) | better | -0.1234 | -0.1434 to -0.0934 | 0.012 | 4.1000 | 5 | 0.003 |" in text
    assert "| `rmsnorm` | baseline |  |  |  | 4.1000 | 5 | 0.003 |" in text
    assert "| `odd \\| 'name'` | undecided; 41 seeds would decide; 2 diverged | +0.0567 |" in text
    whole = (studied / "model" / "README.md").read_text()
    assert "stands beside baselines" in whole and "spread over seeds not measured" not in whole


def test_a_refused_study_ranks_nothing_on_the_card(studied):
    change(studied, refused=["the tokens differ between t and rmsnorm at budget 1"])
    text = section(studied)
    assert "- the tokens differ between t and rmsnorm at budget 1." in text
    assert "better" not in text and "0.1234" not in text


def test_accuracy_is_shown_with_its_sign_and_an_ablation_says_so(studied):
    change(studied, key="top1", metric="accuracy", unit="points", tuned=False, flips=["t flips: better, worse"])
    text = section(studied)
    assert "| `t` (this model) | better | +0.1234 | +0.0934 to +0.1434 |" in text
    assert "in points, above 0 where" in text and "A declared ablation" in text and "- t flips: better, worse." in text


@pytest.mark.parametrize("phase, words", [("tuning", "is no witness"), ("curve", "noise or curve")])
def test_a_run_that_is_no_witness_says_so(studied, phase, words):
    lines = [{**report(studied)["runs"][0], "phase": phase}]
    change(studied, runs=lines)
    assert words in section(studied)
    change(studied, runs=[{**lines[0], "budget": 0.5}])
    assert section(studied).endswith("At this budget nothing was compared.")


def test_a_report_of_another_run_is_not_taken(studied):
    """The name alone is no proof, and neither is the place."""
    entry = report(studied)["runs"][1]
    change(studied, runs=[{**entry, "model_sha256": "ab" * 32}])
    assert section(studied).startswith(NOT_MEASURED)
    change(studied, runs=[])
    assert section(studied).startswith(NOT_MEASURED)
    content = report(studied)
    del content["runs"]  # as earlier versions wrote it
    write(studied.parents[1] / "report" / "report.json", content)
    assert section(studied).startswith(NOT_MEASURED)
    change(studied)
    assert section(studied).startswith("Study `four`")
    (studied / "model" / "config.json").write_text((studied / "model" / "config.json").read_text() + "\n")
    assert section(studied).startswith(NOT_MEASURED)  # the report is of what was there before


def test_a_study_that_kept_no_weights_knows_a_run_by_name_and_result(studied):
    entry = {**report(studied)["runs"][1], "model_sha256": None}
    change(studied, runs=[entry])
    assert section(studied).startswith("Study `four`")
    for other in ({"measured": VALIDATION["loss"] + 1e-9}, {"run": "two"}, {"measured": None}):
        change(studied, runs=[{**entry, **other}])
        assert section(studied).startswith(NOT_MEASURED), other


def test_a_study_elsewhere_is_named(run, tmp_path, capsys):
    folder = tmp_path / "study"
    write(folder / "report" / "report.json", report(run))
    for place in (folder, folder / "report", folder / "report" / "report.json"):
        assert main(["card", str(run), "--study", str(place)]) == 0
        assert "Study `four`" in (run / "model" / "README.md").read_text()
    write(folder / "report" / "report.json", report(run, runs=[]))
    with pytest.raises(UserError, match="holds no run with the weights of"):
        write_card(run, study=folder)
    capsys.readouterr()
    for place in (tmp_path / "absent", tmp_path):
        assert main(["card", str(run), "--study", str(place)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="is no run folder"):
        write_card(run / "model", study=folder)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is unreadable"),
        ("[]", "a JSON object"),
        ("{}", "key arms is missing"),
        ({"arms": {"t": {"verdict": "better"}}}, "key arms.t.difference is missing"),
        ({"arms": {"t": arm(-0.1, "best")}}, "says 'best', which is no verdict"),
        ({"budgets": {"1": {"seeds": [1], "arms": {"t": arm("-0.1", "better")}}}}, "difference holds '-0.1' instead"),
        ({"refused": "no"}, "key refused holds 'no' instead of a list"),
        ({"runs": [{"run": 3}]}, "key runs[0].arm is missing"),
        ({"margin": True}, "key margin holds True instead of"),
    ],
)
def test_a_damaged_report_is_one_sentence(studied, capsys, content, words):
    path = studied.parents[1] / "report" / "report.json"
    path.write_text(content if isinstance(content, str) else json.dumps({**report(studied), **content}))
    assert main(["card", str(studied)]) == 2
    error = capsys.readouterr().err
    assert words in error and "report.json" in error and error.count("\n") == 1
    assert not (studied / "model" / "README.md").exists()


def test_a_linked_report_is_refused(studied, tmp_path):
    path = studied.parents[1] / "report" / "report.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="is a link"):
        write_card(studied)
