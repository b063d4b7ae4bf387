# SPDX-License-Identifier: Apache-2.0
"""Runs measured beside their placebo: from folders to tables and pictures."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from ibnorm_hf import cli
from ibnorm_hf.analysis.capture import capture, norm_sites
from ibnorm_hf.analysis.differences import BEYOND, NONE, ONE, PARTLY, SWAP, differences, summary, theorem_1, verdict
from ibnorm_hf.analysis.information import usable_information
from ibnorm_hf.analysis.measure import QUANTITIES, Options, frequent, measure
from ibnorm_hf.analysis.record import record, swapped
from ibnorm_hf.analysis.runs import Source, gather, held_out, open_run, trained_model
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.modeling.create import create_norm
from ibnorm_hf.training.reopen import held_out_images, initial_model

ROOT = Path(__file__).parents[2]
SOURCE = Source(initial_model, held_out_images)
SHORT = Options(samples=96, classes=6, renyi_samples=48, noises=(0.3, 1.0))


@pytest.fixture(scope="module", autouse=True)
def short_probes():
    """How well a probe fits is asked in test_information; here it takes a few steps, which were most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ibnorm_hf.analysis.measure.usable_information", partial(usable_information, iterations=6))
        yield


@pytest.fixture(scope="module")
def folders(make_run):
    return [make_run(norm, seed) for norm in ("rmsnorm", "ibnorm-t") for seed in (2, 1)]


@pytest.fixture(scope="module")
def analyzed(folders, tmp_path_factory):
    """What the command writes, and what it prints."""
    out = tmp_path_factory.mktemp("out") / "study"
    words = ["analyze", *map(str, folders), "--placebo", "--out", str(out), "--samples", "96", "--classes", "6"]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
        assert cli.main(words) == 0
    return out, "\n".join(printed), words


def test_the_model_before_its_first_step_is_rebuilt_to_the_bit(make_run):
    """What was frozen is still there; what was trained has moved from where it began."""
    folder = make_run("ibnorm-t", 5, "--train_only", "norms")
    torch.manual_seed(77)
    first, after = initial_model(folder), torch.rand(1)
    torch.manual_seed(77)
    assert torch.equal(after, torch.rand(1)), "the caller's random numbers are left alone"
    before, now = first.state_dict(), trained_model(open_run(folder)).state_dict()
    assert before.keys() == now.keys()
    for name, value in before.items():
        assert torch.equal(value, now[name]) == ("norm" not in name), name
        if "norm" in name:
            assert torch.equal(value, torch.ones_like(value))


def test_arms_are_gathered_by_their_flags_and_what_is_not_comparable_is_refused(make_run, folders, tmp_path):
    arms = gather([str(folder) for folder in folders])
    assert {name: [opened.seed for opened in runs] for name, runs in arms.items()} == {
        "rmsnorm": [1, 2],
        "ibnorm-t": [1, 2],
    }
    other = make_run("ibnorm-t", 1, "--norm_lambda", 1)
    assert list(gather([str(folders[-1]), str(other)])) == ["ibnorm-t", "ibnorm-t lambda 1"]
    alone = make_run("ibnorm-t", 5, "--train_only", "norms")
    for wrong, said in (
        ([folders[0], alone], "differ in key train_only"),
        ([folders[0], make_run("rmsnorm", 3, "--max_steps", 5)], "differ in key max_steps"),
        ([folders[0], make_run("rmsnorm", 2, "--learning_rate", "0.01")], "two runs of seed 2"),
        ([tmp_path], "is no run"),
        ([tmp_path / "nothing"], "is no run"),
    ):
        with pytest.raises(UserError, match=said):
            gather([str(folder) for folder in wrong])


def test_labels_keep_the_most_frequent():
    labels = torch.tensor([9, 9, 9, 4, 4, 7, 7, 1])
    assert frequent(labels, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert sorted(set(frequent(labels, 0).tolist())) == [0, 1, 2, 3]


def test_a_record_is_what_each_part_gives_alone(folders):
    opened = open_run(folders[-1])
    arms = {"a": {"norm_type": "layernorm"}, "b": {"norm_type": "ibnorm-l", "norm_lambda": [1.0, 2.0, 3.0, 4.0, 5.0]}}
    made = record(opened, arms, SOURCE, SHORT, placebo=True)
    model = trained_model(opened)
    found = capture(model, held_out(opened, SOURCE, samples=96, seed=0), sites=norm_sites(model), samples=96)
    labels = frequent(found.labels, 6)
    assert [site["site"] for site in made["sites"]] == [s[:-3] for s in norm_sites(model) if s.endswith(":in")]
    assert [(site["layer"], site["kind"]) for site in made["sites"]] == [
        (1, "attention"),
        (1, "mlp"),
        (2, "attention"),
        (2, "mlp"),
        (0, "final"),
    ]
    site, inputs = made["sites"][3], found.sites["model.layers.1.post_attention_layernorm:in"]
    trained = measure(found.sites["model.layers.1.post_attention_layernorm:out"], inputs, labels, SHORT)
    assert site["trained"] == trained
    assert set(trained) == {*QUANTITIES, "channel@0.3", "channel@1"}
    assert trained["ib"]["value"] == trained["usable"]["value"] - 0.5 * trained["channel"]["value"]
    norm = create_norm("ibnorm-l", 16, eps=1e-6, norm_lambda=4.0, norm_affine=False, dtype=torch.float64)
    alone = measure(norm(inputs.double()), inputs, labels, SHORT, intervals=False)
    assert site["placebo"]["b"] == alone
    assert site["lambda"] == 4 and 0 <= site["share_beyond"] < 1
    assert site["share_beyond_logged"] is not None
    first = initial_model(folders[-1])
    again = capture(first, held_out(opened, SOURCE, samples=96, seed=0), sites=norm_sites(first), samples=96)
    assert torch.equal(again.labels, found.labels)
    assert site["initial"]["kurtosis"]["value"] != trained["kurtosis"]["value"]
    assert made["classes"] == 6 and made["samples"] == 96


def test_a_swap_over_a_batch_takes_the_samples_for_the_batch():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    out = swapped(rows, torch.nn.BatchNorm2d(8), {"norm_type": "batchnorm"}, 0)
    torch.testing.assert_close(out.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(out.var(0), torch.ones(8, dtype=torch.float64), atol=1e-4, rtol=0)
    other = swapped(rows, torch.nn.BatchNorm2d(8), {"norm_type": "ibnorm-t", "norm_lambda": 1.0}, 0)
    assert (other - out).abs().max() > 0.1
    token = swapped(rows, torch.nn.LayerNorm(8), {"norm_type": "layernorm"}, 0)
    torch.testing.assert_close(token, torch.nn.functional.layer_norm(rows.double(), (8,), eps=1e-5))
    narrow = swapped(rows / 1e3, torch.nn.LayerNorm(8, eps=1e-7), {"norm_type": "layernorm"}, 0)
    torch.testing.assert_close(narrow, torch.nn.functional.layer_norm((rows / 1e3).double(), (8,), eps=1e-7))


def test_the_command_writes_everything_and_goes_on_where_it_was(analyzed, monkeypatch):
    out, printed, words = analyzed
    whole = json.loads((out / "information.json").read_text())
    assert "infinite" in whole["what"] and "infinite" in printed
    assert whole["arms"] == {"rmsnorm": [1, 2], "ibnorm-t": [1, 2]} and whole["baseline"] == "rmsnorm"
    assert {row["arm"] for row in whole["differences"]} == {"ibnorm-t"}
    assert len(whole["differences"]) == 5 * len(QUANTITIES)
    pictures = {"figure2a", "differences", "noise", "shape", "lambda"}
    assert {p.stem for p in out.glob("*.png")} == pictures
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in out.glob("*.png"))
    with open(out / "information.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 5 * 4 * (len(QUANTITIES) + 6), "runs, norms, states (2 placebos), quantities and noises"
    site = whole["runs"][0]["sites"][0]
    (line,) = [
        r
        for r in rows
        if (r["arm"], r["seed"], r["number"], r["state"], r["quantity"]) == ("rmsnorm", "1", "1", "trained", "usable")
    ]
    assert float(line["value"]) == site["trained"]["usable"]["value"]
    assert [float(line[end]) for end in ("low", "high")] == site["trained"]["usable"]["interval"]
    with open(out / "differences.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(whole["differences"])
    with open(out / "theorem1.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(whole["theorem1"]) == 10
    assert "arm minus rmsnorm" in printed and "Theorem 1" in printed and str(out / "figure2a.png") in printed
    seconds = [made["seconds"] for made in whole["runs"]]
    assert all(0 < each["cpu"] < 120 and each["wall"] > 0 for each in seconds)
    assert f"at most: {max(each['cpu'] for each in seconds):.0f} of the processor" in printed
    monkeypatch.setattr("ibnorm_hf.analysis.record._measured", None)
    monkeypatch.setattr("ibnorm_hf.analysis.analyze.draw", lambda *words: [])  # the pictures were drawn above
    assert cli.main(words) == 0, "nothing was measured again"
    (out / "runs" / "rmsnorm-seed1.json").write_text("{}")
    with pytest.raises(TypeError):
        cli.main(words)


def test_trained_minus_swap_is_the_rest(analyzed):
    whole = json.loads((analyzed[0] / "information.json").read_text())
    records = {}
    for made in whole["runs"]:
        records.setdefault(made["arm"], []).append(made)
    (row,) = [r for r in whole["differences"] if r["number"] == 2 and r["quantity"] == "channel"]

    def of(arm, seed, *where):
        (made,) = [m for m in records[arm] if m["seed"] == seed]
        found = made["sites"][1]
        for key in where:
            found = found[key]
        return found["channel"]["value"]

    trained = [of("ibnorm-t", s, "trained") - of("rmsnorm", s, "trained") for s in (1, 2)]
    swap = [
        sum(of(arm, s, "placebo", "ibnorm-t") - of(arm, s, "placebo", "rmsnorm") for arm in ("ibnorm-t", "rmsnorm")) / 2
        for s in (1, 2)
    ]
    assert row["trained"]["value"] == pytest.approx(sum(trained) / 2)
    assert row["swap"]["value"] == pytest.approx(sum(swap) / 2)
    assert row["rest"]["value"] == pytest.approx(row["trained"]["value"] - row["swap"]["value"])
    assert row["initial"]["value"] == pytest.approx(
        sum(of("ibnorm-t", s, "initial") - of("rmsnorm", s, "initial") for s in (1, 2)) / 2
    )
    assert differences(records, "rmsnorm") == whole["differences"]
    zero = [r for r in theorem_1(records) if r["beta"] == 0 and r["estimator"] == "probe and channel"]
    usable = [r["trained"]["value"] for r in whole["differences"] if r["quantity"] == "usable"]
    assert zero[0]["trained"]["mean"] == pytest.approx(sum(usable) / 5)


def found(value, half):
    return {"value": value, "interval": None if half is None else [value - half, value + half]}


@pytest.mark.parametrize(
    ("trained", "swap", "rest", "said"),
    [
        ((0.5, None), (0.5, None), (0.0, None), ONE),
        ((0.1, 0.2), (0.5, 0.1), (-0.4, 0.1), NONE),
        ((0.5, 0.1), (0.45, 0.1), (0.05, 0.1), SWAP),
        ((0.5, 0.1), (0.2, 0.1), (0.3, 0.1), PARTLY),
        ((0.5, 0.1), (-0.2, 0.1), (0.7, 0.1), BEYOND),
        ((0.5, 0.1), (0.0, 0.1), (0.5, 0.1), BEYOND),
    ],
)
def test_verdicts(trained, swap, rest, said):
    assert verdict(found(*trained), found(*swap), found(*rest)) == said


def test_intervals_over_seeds_are_students():
    made = summary([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert made["value"] == 2 and made["interval"] == pytest.approx([2 - half, 2 + half])
    assert summary([1.0])["interval"] is None


def test_images_are_analyzed_too(make_run, tmp_path, capsys):
    pytest.importorskip("sklearn")
    short = ("--max_steps", 3, "--eval_steps", 3, "--save_steps", 3, "--logging_steps", 1, "--warmup_steps", 1)
    short += ("--model.embedding_size", 8, "--model.hidden_sizes", "[8,16]")
    resnet = ROOT / "recipes" / "resnet" / "tiny.yaml"
    runs = [make_run(norm, 1, *short, recipe=resnet) for norm in ("batchnorm", "ibnorm-l")]
    words = ["--estimators", "usable", "soft", "--samples", "100", "--placebo", "--out", str(tmp_path)]
    assert cli.main(["analyze", *map(str, runs), *words]) == 0
    whole = json.loads((tmp_path / "information.json").read_text())
    made = whole["runs"][0]
    assert made["images"] and made["classes"] == 10 and made["samples"] == 100
    assert "channel" not in made["sites"][0]["trained"] and not (tmp_path / "noise.png").exists()
    assert {row.get("verdict") for row in whole["differences"]} == {ONE}
    assert "one seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "analyze takes runs, or --densities"),
        (["run", "--densities"], "analyze takes runs, or --densities"),
        (["run", "--estimators", "renji"], "--estimators renji is unknown; did you mean 'renyi'?"),
        (["run", "--samples", "3"], "--samples 3"),
        (["run"], "run is no run"),
    ],
)
def test_mistakes_are_one_sentence(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["analyze", *words, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1
