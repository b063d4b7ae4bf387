# SPDX-License-Identifier: Apache-2.0
import csv
import json

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
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, text, sentence, capsys):
    table = tmp_path / "t.csv"
    table.write_text(text)
    assert compare(table, tmp_path / "out", baseline="b") == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_table_baseline_or_margin_is_one_sentence(tmp_path, capsys):
    table = write(tmp_path / "t.csv", fake_rows({"base": 3.0, "gain": 2.9}, random=1))
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "absent.csv")
    assert compare(table, tmp_path / "out", baseline="bass") == 2
    assert compare(table, tmp_path / "out", margin="0") == 2
    assert compare(table, tmp_path / "out", margin="nan") == 2
    assert capsys.readouterr().err.count("\n") == 3
