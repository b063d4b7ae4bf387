# SPDX-License-Identifier: Apache-2.0
"""README's table of studies and the page beside the reports say what the reports say, whether none, one or several."""

import json

import pytest

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.studies.report import Study, write_report
from ibnorm_hf.studies.units import UNITS
from ibnorm_hf.studies.verdict import judge_rows
from recipes.studies import summary

from .fakes import fake_rows

TRUTH = {"base": 3.0, "good": 2.7, "bad": 3.4, "twin": 3.0}


def put(folder, rows, margin=0.08, unit=UNITS["loss"], **more):
    """A study's report as the command writes it."""
    judged = judge_rows(rows, "base", margin) | {"unit": unit.unit, "metric": unit.name, "key": unit.key} | more
    write_report(Study(folder.name, judged, rows, unit), folder)
    return judged


def test_the_repository_says_what_its_reports_say():
    readme = (summary.ROOT / "README.md").read_text()
    why = "python recipes/studies/summary.py --write"
    assert readme.split(summary.START)[1].split(summary.END)[0].strip() == summary.render(), why
    assert (summary.STUDIES / "README.md").read_text() == summary.page(), why


def test_without_a_study_it_says_so(tmp_path):
    assert summary.render(tmp_path) == summary.NONE and summary.NONE in summary.page(tmp_path)
    assert summary.render(tmp_path / "absent") == summary.NONE


def test_one_study_at_each_budget(tmp_path):
    judged = put(tmp_path / "one", fake_rows(TRUTH, random=1, budgets=(1.0, 3.0)))
    table = summary.render(tmp_path).splitlines()
    assert len(table) == 3 and table[2].startswith(
        "| [one](model_cards/studies/one/report.md) | `base` | 0.08 nats | 5 |"
    )
    good, bad = (judged["budgets"]["3"]["arms"][name]["difference"] for name in ("good", "bad"))
    assert f"**3x** better: `good` {good:+.3f}; worse: `bad` {bad:+.3f}; equivalent: `twin` |" in table[2]
    assert "**1x** better: `good`" in table[2]
    page = summary.page(tmp_path)
    assert (
        "[one](one/report.md)" in page
        and "- Budget 3x: 4 arms, claim seeds 0, 1, 2, 3, 4, error of one run 0.0" in page
    )
    assert "- Runs: 88 done." in page and "Its file: not kept" in page and "Code of the runs: not recorded." in page


MADE = {"commits": ["c0ffee", "c1"], "torch": ["2.0"], "transformers": []}


def test_several_studies_among_them_refused_and_of_accuracy(tmp_path):
    put(tmp_path / "b-refused", fake_rows(TRUTH, random=2, seeds=3))
    points = {name: -100 + value for name, value in TRUTH.items()}
    put(tmp_path / "a-points", fake_rows(points, random=3), unit=UNITS["top1"], code_sha256="ab" * 32, made_by=MADE)
    (tmp_path / "a-points" / "study.yaml").write_text("base: x\n")
    (tmp_path / "a-points" / "timing.json").write_text(
        json.dumps({"1": {"good": {"median": 12.4}, "bad": {"median": 3}}})
    )
    (tmp_path / "a-points" / "runs.tar.gz").write_bytes(b"")
    first, second = summary.render(tmp_path).splitlines()[2:]
    assert "| 0.08 points |" in first and "better: `good` +0." in first and "worse: `bad` -0." in first
    assert "| not ranked: bad has 3 claim seeds at budget 1, fewer than 5;" in second and "better" not in second
    page = summary.page(tmp_path)
    assert "Its file: [study.yaml](a-points/study.yaml)." in page and "budget 1x: 3 to 12 s" in page
    assert "done. `--from` goes on from [them](a-points/runs.tar.gz)." in page and page.count("`--from`") == 1
    assert "Code of the runs: abababababababab; commits c0ffee, c1; torch 2.0." in page


def test_a_damaged_report_is_one_sentence(tmp_path):
    put(tmp_path / "one", fake_rows(TRUTH, random=1))
    path = tmp_path / "one" / "report.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(UserError, match=r"report\.json is unreadable"):
        summary.render(tmp_path)
