# SPDX-License-Identifier: Apache-2.0
import csv
import json
import random
import signal
import time
import warnings
from dataclasses import replace

import pytest

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.studies.rows import read_table

from .fakes import fake_rows


def write(path, rows, **more):
    names = ["arm", "learning_rate", "seed", "loss", "budget", "tokens", "parameters", "data_sha256"]
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        for row in rows:
            line = {name: getattr(row, name, "") for name in names} | {"loss": row.value}
            writer.writerow({k: "" if v is None else v for k, v in line.items()})
    return path


def compare(table, out, margin="0.02", baseline="base"):
    return main(["compare", "--table", str(table), "--baseline", baseline, "--margin", margin, "--out", str(out)])


def test_a_table_is_judged_and_the_report_written_the_same_twice(tmp_path, capsys):
    table = write(tmp_path / "t.csv", fake_rows({"base": 3.0, "gain": 2.9, "loss": 3.1}, random=1, budgets=(1.0, 3.0)))
    assert compare(table, tmp_path / "a") == 0 and compare(table, tmp_path / "b") == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["differences.png", "rates.png", "report.html", "report.json", "report.md", "runs.csv"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert (report["baseline"], report["margin"], report["refused"]) == ("base", 0.02, [])
    assert {name: arm["verdict"] for name, arm in report["arms"].items()} == {
        "base": "equivalent",
        "gain": "better",
        "loss": "worse",
    }
    gain = report["arms"]["gain"]
    assert gain["low"] < gain["difference"] < gain["high"] < 0 and gain["n"] == 5 and gain["learning_rate"] == 0.003
    # The same numbers everywhere.
    shown = f"{gain['difference']:+.4f}"
    assert shown in (tmp_path / "a" / "report.md").read_text() and shown in (tmp_path / "a" / "report.html").read_text()
    assert shown in capsys.readouterr().out
    assert len((tmp_path / "a" / "runs.csv").read_text().splitlines()) == 1 + 2 * 3 * (6 + 5)


def test_a_report_says_that_the_errors_of_the_arms_differ(tmp_path, capsys):
    rows = fake_rows(dict.fromkeys(("base", "a", "b", "c", "d"), 3.0), random=1)
    assert compare(write(tmp_path / "t.csv", rows), tmp_path / "even") == 0
    assert "errors differ" not in capsys.readouterr().out
    wild = [
        replace(row, value=row.value + 0.5 * (-1) ** row.seed * row.seed) if row.arm == "d" and row.seed < 100 else row
        for row in rows
    ]
    assert compare(write(tmp_path / "t.csv", wild), tmp_path / "uneven") == 0
    even, uneven = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("even", "uneven"))
    assert even["budgets"]["1"]["uneven"] is None
    told = uneven["budgets"]["1"]["uneven"]
    assert told["most"]["arm"] == "d" and told["most"]["error"] > 10 * told["least"]["error"]
    for page in ("report.md", "report.html"):
        assert "errors differ" not in (tmp_path / "even" / page).read_text()
        assert f"{told['most']['error']:.3g} nats of d" in (tmp_path / "uneven" / page).read_text()
    assert f"{told['most']['error']:.3g} nats of d" in capsys.readouterr().out


def test_a_table_that_is_not_fair_ends_with_3_and_ranks_nothing(tmp_path, capsys):
    rows = [row for row in fake_rows({"base": 3.0, "gain": 2.9}, random=1) if row.seed != 4]
    assert compare(write(tmp_path / "t.csv", rows), tmp_path / "out") == 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["refused"] and report["arms"]["gain"]["verdict"] == "undecided"
    assert "fewer than 5" in capsys.readouterr().out


def test_empty_and_infinite_losses_are_runs_that_diverged(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("arm,learning_rate,seed,loss\na,0.1,1,\na,0.2,1,nan\na,0.1,2,inf\na,0.1,3,2.5\n")
    rows = read_table(table)
    assert [row.value for row in rows] == [float("inf")] * 3 + [2.5]
    assert [row.phase for row in rows] == ["tuning", "tuning", "claim", "claim"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no column arm"),
        ("arm,learning_rate,seed\nb,1,1\n", "has no column loss"),
        ("arm,learning_rate,seed,loss\n", "holds no runs"),
        ("arm,learning_rate,seed,loss\nb,fast,1,2\n", "line 2: column learning_rate holds 'fast'"),
        ("arm,learning_rate,seed,loss\nb,1,1.5,2\n", "line 2: column seed holds '1.5'"),
        ("arm,learning_rate,seed,loss\n,1,1,2\n", "line 2: column arm is empty"),
        ("arm,learning_rate,seed,loss\nb,1,1,2\nb,1,1,3\n", "line 3: arm b has seed 1"),
        ("arm,learning_rate,seed,loss\nb,-1,1,2\n", "column learning_rate holds -1"),
        ("arm,learning_rate,seed,loss\nb,1,1,two\n", "column loss holds 'two'"),
        ("arm,learning_rate,seed,loss\nb,1,1,2\nb,1,2,3\n", "b is its only arm"),
        ("arm,learning_rate,seed,loss\nb,1,1\n", "line 2: it has not the 4 cells"),
        ("arm,learning_rate,seed,loss\nb,1,1,2,5\n", "line 2: it has not the 4 cells"),
        ("arm,learning_rate,seed,loss,loss\nb,1,1,2,5\n", "has the column 'loss' twice"),
        ("arm,learning_rate,seed,loss,bugdet\nb,1,1,2,5\n", "did you mean 'budget'"),
        ("arm;learning_rate;seed;loss\nb;1;1;2\n", "has no column arm"),
        ("arm,learning_rate,seed,loss\nb,1,nan,2\n", "column seed holds 'nan'"),
        ("arm,learning_rate,seed,loss\nb,1,1e999,2\n", "column seed holds '1e999'"),
        ('arm,learning_rate,seed,loss\n"b\nc",1,1,2\n"b\nc",1,1,2\n', "arm b c has seed 1"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, text, sentence, capsys):
    table = tmp_path / "t.csv"
    table.write_text(text)
    assert compare(table, tmp_path / "out", baseline="b") == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_any_name_of_an_arm_is_shown_and_no_number_breaks_the_report(tmp_path, capsys):
    """Formulas, markup, control characters, other scripts; no weight decay in some lines; a loss beyond all measure."""
    names = ["$\\frac", "_hidden", "<b>bold</b>", "a | b", "two  words\nand a line", "нормa", "x" * 300, "bell\x07"]
    truth = {"base": 3.0} | {name: 3.0 + 0.1 * place for place, name in enumerate(names)}
    rows = fake_rows(truth, random=1)
    table = write(tmp_path / "t.csv", rows)
    assert compare(table, tmp_path / "out") == 0
    told = capsys.readouterr()
    assert "\x07" not in told.out and "нормa" in told.out and not told.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["arms"]) == {" ".join(name.split(" ")) for name in truth}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "<b>bold" not in page
    assert "| a \\| b |" in (tmp_path / "out" / "report.md").read_text()


def test_lines_with_and_without_a_weight_decay_are_sorted(tmp_path):
    lines = ["arm,learning_rate,seed,loss,weight_decay"]
    for arm in ("base", "other"):
        lines += [f"{arm},0.1,{seed},{2 + seed / 100},{decay}" for seed in range(6) for decay in ("", "0.1")]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert compare(tmp_path / "t.csv", tmp_path / "out") == 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "there are no claim seeds" in report["refused"]


def test_a_loss_beyond_all_measure_diverged(tmp_path):
    (tmp_path / "t.csv").write_text("arm,learning_rate,seed,loss\na,1,1,1e308\na,1,2,-1e308\na,1,3,2\n")
    assert [row.value for row in read_table(tmp_path / "t.csv")] == [float("inf"), float("inf"), 2.0]


@pytest.mark.parametrize(
    ("arms", "seeds", "budgets", "rate", "noise"),
    [
        (4, 2490, 1, 0.001, 0),
        (200, 44, 1, 0.003, 0),
        (10, 94, 10, 0.003, 0),
        # Undecided arms, of each of which it is asked how many seeds would decide.
        (200, 44, 1, 0.003, 0.05),
        (40, 44, 5, 0.003, 0.05),
    ],
)
def test_ten_thousand_runs_cost_four_times_a_quarter_of_them(tmp_path, arms, seeds, budgets, rate, noise):
    """Seconds of this process, so that a busy machine does not matter; pictures of many arms are drawn, too.

    What grows with the square of a table's length would cost sixteen times the quarter.
    """

    def judged(name: str, arms: int, seeds: int) -> tuple[float, dict]:
        chance = random.Random(1)
        lines = ["arm,learning_rate,seed,loss,budget"]
        for arm in range(arms):
            for budget in range(1, budgets + 1):
                lines += [
                    f"{arm},{r},{s},{3 + abs(r - 0.003)},{budget}" for s in (-2, -1) for r in (0.001, 0.003, 0.01)
                ]
                values = [3 + s % 7 / 100 + chance.gauss(arm * 1e-3 * noise, noise) for s in range(seeds)]
                lines += [f"{arm},{rate if s % 2 else 0.003},{s},{value},{budget}" for s, value in enumerate(values)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
        begin = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            code = compare(tmp_path / f"{name}.csv", tmp_path / name, baseline="0")
        seconds = time.process_time() - begin
        assert code == (3 if rate == 0.001 else 0)
        return seconds, json.loads((tmp_path / name / "report.json").read_text())["arms"] | {"lines": len(lines)}

    judged("imports", 3, 10)  # what the first picture of a process costs is none of the table's
    quarter, _ = judged("quarter", arms // 4 if arms > 4 else arms, seeds if arms > 4 else seeds // 4)
    whole, verdicts = judged("whole", arms, seeds)
    assert verdicts.pop("lines") > 9_900
    assert whole < 8 * quarter, (whole, quarter)
    assert (
        not noise or sum(arm["verdict"] == "undecided" and arm["seeds_to_decide"] > 1 for arm in verdicts.values()) > 20
    )


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of a file's size on this system")
def test_a_full_disk_leaves_the_old_report(tmp_path, capsys):
    import resource

    table = write(tmp_path / "t.csv", fake_rows({"base": 3.0, "gain": 2.9}, random=1))
    assert compare(table, tmp_path / "out") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = write(tmp_path / "u.csv", fake_rows({"base": 3.0, "gain": 2.8}, random=2))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        assert compare(other, tmp_path / "out") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    error = capsys.readouterr().err
    assert "cannot be written: File too large; free some room" in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert compare(other, tmp_path / "u.csv" / "below") == 1  # a file where a folder should be


def test_a_missing_table_baseline_or_margin_is_one_sentence(tmp_path, capsys):
    table = write(tmp_path / "t.csv", fake_rows({"base": 3.0, "gain": 2.9}, random=1))
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "absent.csv")
    assert compare(table, tmp_path / "out", baseline="bass") == 2
    assert compare(table, tmp_path / "out", margin="0") == 2
    assert compare(table, tmp_path / "out", margin="nan") == 2
    assert capsys.readouterr().err.count("\n") == 3
