# SPDX-License-Identifier: Apache-2.0
"""`ibnorm-hf leaderboard`: from results files to numbers, and what it refuses."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from ibnorm_hf.evaluation.bounds import LEAVES
from ibnorm_hf.evaluation.leaderboard import leaderboard

from .conftest import make_results, write_results

SNARKS, IFEVAL = "leaderboard_bbh_snarks", "leaderboard_ifeval"


def rows(text: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(text)["models"][0]["rows"]}


def test_json_holds_everything_and_alone_is_on_stdout(command: Callable, tmp_path: Path) -> None:
    content = make_results(0.5, leaderboard_gpqa_main=0.33, leaderboard_gpqa_diamond=0.2)
    content["config"]["limit"] = 100
    code, out, err = command("leaderboard", write_results(tmp_path / "r.json", content), "--format", "json")
    assert code == 0 and "--limit 100" in err
    found = rows(out)
    assert len(found) == 39 + 6 + 1
    main = found["leaderboard_gpqa_main"]
    assert main["score"] == pytest.approx(10.67, abs=0.005) and main["chance"] == 0.25 and main["n"] == 100
    assert found["leaderboard_gpqa_diamond"]["score"] == 0
    # (10.67 + 0 + 33.33) / 3: the mean of scores, where the score of the mean raw metric would be 12.4.
    assert found["GPQA"]["score"] == pytest.approx((100 * 0.08 / 0.75 + 0 + 100 * 0.25 / 0.75) / 3)
    benchmarks = [row["score"] for row in found.values() if row["level"] == "benchmark"]
    assert found["Average"]["score"] == pytest.approx(sum(benchmarks) / 6)


def test_ifeval_is_the_mean_of_its_two_strict_metrics(command: Callable, tmp_path: Path) -> None:
    content = make_results()
    row = content["results"]["leaderboard_ifeval"]
    row.update({"inst_level_strict_acc,none": 0.4, "prompt_level_strict_acc,none": 0.2, "inst_level_loose_acc,none": 1})
    _, out, _ = command("leaderboard", write_results(tmp_path / "r.json", content), "--format", "json")
    assert rows(out)["IFEval"]["score"] == pytest.approx(30.0)


def test_missing_tasks_are_an_error_and_partial_names_them(
    command: Callable, refused: Callable, tmp_path: Path
) -> None:
    content = make_results()
    del content["results"]["leaderboard_bbh_snarks"]
    path = write_results(tmp_path / "r.json", content)
    assert "lacks 1 of 39 tasks (leaderboard_bbh_snarks)" in refused("leaderboard", path)
    code, out, _ = command("leaderboard", path, "--partial", "--format", "json")
    model = json.loads(out)["models"][0]
    assert code == 0 and model["average"] is None and model["missing"] == ["leaderboard_bbh_snarks"]
    names = {row["name"] for row in model["rows"]}
    assert {"Average", "BBH"} & names == set() and "GPQA" in names and "leaderboard_bbh_navigate" in names
    _, table, _ = command("leaderboard", path, "--partial")
    assert "refused: tasks are missing" in table and "missing or incomplete: leaderboard_bbh_snarks" in table


def test_a_task_scored_on_a_part_of_its_questions_counts_as_missing(refused: Callable, tmp_path: Path) -> None:
    content = make_results()
    content["ibnorm"] = {"excluded": {"leaderboard_ifeval": {"reason": "77 of 541 questions are left out"}}}
    assert "leaderboard_ifeval (77 of 541 questions are left out)" in refused(
        "leaderboard", write_results(tmp_path / "r.json", content)
    )


def test_models_side_by_side(command: Callable, tmp_path: Path) -> None:
    first = write_results(tmp_path / "a" / "results_1.json", make_results(0.5))
    second = write_results(tmp_path / "b" / "results_1.json", make_results(0.52, leaderboard_mmlu_pro=0.9))
    code, out, _ = command("leaderboard", first.parent, second.parent, "--format", "json")
    content = json.loads(out)
    assert code == 0 and content["difference_to"] == "a"
    verdicts = {row["name"]: row for row in content["models"][1]["rows"]}
    assert verdicts["BBH"]["verdict"] == "not an improvement" and verdicts["BBH"]["difference"] > 0
    mmlu = verdicts["MMLU-PRO"]
    assert mmlu["verdict"] == "higher" and mmlu["difference"] == pytest.approx(100 * 0.4 / 0.9)
    errors = ((0.25 / 100) ** 0.5, (0.09 / 100) ** 0.5)
    assert mmlu["difference_stderr"] == pytest.approx(100 / 0.9 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5)
    _, table, _ = command("leaderboard", first.parent, second.parent)
    assert "not an improvement" in table and "+44.44 ±" in table


def test_models_asked_different_questions_are_not_compared(
    command: Callable, refused: Callable, tmp_path: Path
) -> None:
    first = write_results(tmp_path / "a.json", make_results(n=100))
    assert "answered 50 questions" in refused(
        "leaderboard", first, write_results(tmp_path / "b.json", make_results(n=50))
    )
    ours, theirs = make_results(), make_results()
    ours["task_hashes"], theirs["task_hashes"] = {"leaderboard_mmlu_pro": "x"}, {"leaderboard_mmlu_pro": "y"}
    pair = write_results(tmp_path / "c.json", ours), write_results(tmp_path / "d.json", theirs)
    code, _, err = command("leaderboard", *pair)
    assert code == 0 and "saw other questions or prompts in 1 tasks" in err


def test_formats_agree(command: Callable, tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.json", make_results(0.61))
    _, text, _ = command("leaderboard", path, "--format", "json")
    by_json = {name: row["score"] for name, row in rows(text).items()}
    _, text, _ = command("leaderboard", path, "--format", "csv")
    assert {row["name"]: float(row["score"]) for row in csv.DictReader(io.StringIO(text))} == by_json
    _, text, _ = command("leaderboard", path, "--format", "markdown")
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert {row[0]: row[5] for row in cells[2:]}["Average"] == f"{by_json['Average']:.2f}"
    _, table, _ = command("leaderboard", path)
    assert any(line.split()[:2] == ["BBH", "0.6100"] for line in table.splitlines())


def test_chart(command: Callable, refused: Callable, tmp_path: Path) -> None:
    from PIL import Image

    path = write_results(tmp_path / "r.json", make_results())
    chart = tmp_path / "deep" / "chart.png"
    code, _, err = command("leaderboard", path, path, "--chart", chart)
    assert code == 0 and str(chart) in err
    with Image.open(chart) as image:
        assert image.format == "PNG" and image.width > 800
        assert len(image.convert("RGB").resize((200, 80)).getcolors(1 << 16)) > 10  # not a blank page
    assert "must end in .png" in refused("leaderboard", path, "--chart", tmp_path / "chart.txt")


def test_a_run_folder_and_a_stock_output_folder_are_found(command: Callable, tmp_path: Path) -> None:
    write_results(tmp_path / "run" / "eval" / "results_abc.json", make_results())
    write_results(tmp_path / "stock" / "made__up" / "results_2026.json", make_results())
    code, out, _ = command("leaderboard", tmp_path / "run", tmp_path / "stock", "--format", "json")
    assert code == 0 and [m["model"] for m in json.loads(out)["models"]] == ["run", "stock"]


def test_a_benchmark_a_file_is_merged_and_contradictions_are_refused(
    command: Callable, refused: Callable, tmp_path: Path
) -> None:
    whole = make_results()
    parts: tuple[dict, dict] = ({**whole, "results": {}}, {**whole, "results": {}})
    for task, row in whole["results"].items():
        parts["math" in task]["results"][task] = row
    folder = tmp_path / "both"
    for name, part in zip("ab", parts, strict=True):
        write_results(folder / f"results_{name}.json", part)
    code, out, _ = command("leaderboard", folder, "--format", "json")
    assert code == 0 and len(rows(out)) == 46
    write_results(folder / "results_c.json", {**parts[1], "config": {"limit": 2}})
    assert "both hold leaderboard_math" in refused("leaderboard", folder)
    parts[0]["config"] = {"limit": 5}
    write_results(folder / "results_a.json", parts[0])
    (folder / "results_c.json").unlink()
    assert "mixes results with --limit 5 and None" in refused("leaderboard", folder)


def _changed(key: str, task: str, value: Any) -> dict[str, Any]:
    content = make_results()
    content[key][task] = value
    return content


MMLU = "leaderboard_mmlu_pro"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is unreadable"),
        ("", "is unreadable"),
        (b"\xff\xfe\x00", "is unreadable"),
        ("[" * 100_000, "is unreadable"),
        ("[1, 2]", "a JSON object"),
        ({"loss": 3.2}, "is not a results file of the harness"),
        ({"results": {"arc_easy": {"acc,none": 0.5}}}, "holds no task of the leaderboard"),
        (_changed("versions", MMLU, 1.0), "is version 1.0, the leaderboard's is 0.1"),
        (_changed("versions", MMLU, None), "is version None, the leaderboard's is 0.1"),
        (_changed("n-shot", MMLU, 0), "was asked with 0 examples, the leaderboard gives 5"),
        (_changed("n-samples", MMLU, {}), "has no number of questions"),
        (_changed("results", MMLU, {"acc,none": "0.5"}), "has no acc between 0 and 1"),
        (_changed("results", MMLU, {"acc,none": 50.0}), "has no acc between 0 and 1"),
        (_changed("results", MMLU, {"acc,none": float("nan")}), "has no acc between 0 and 1"),
        (_changed("results", MMLU, []), "has no number of questions"),
        (_changed("n-samples", MMLU, {"effective": 99_999}), "was asked 99,999 questions and has 12,032"),
        (make_results() | {"config": {"limit": "2"}}, "its limit is '2', no number"),
        (make_results() | {"config": {"limit": True}}, "its limit is True, no number"),
        ('{"results": {"leaderboard_mmlu_pro": {}, "leaderboard_mmlu_pro": {}}}', "is there twice"),
    ],
)
def test_bad_results_get_one_line(refused: Callable, tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "results.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    line = refused("leaderboard", path)
    assert message in line and "results.json" in line


def test_fewer_questions_than_the_leaderboards_are_marked(command: Callable, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(make_results()))
    _, out, err = command("leaderboard", path)
    told = " ".join(f"{out} {err}".split())
    assert "fewer questions than the leaderboard's, first leaderboard_ifeval: 100 of 541" in told


def unusual() -> dict[str, Any]:
    """Results of a model with few positions, as `ibnorm-hf eval` writes them: whole, but for what did not fit."""
    content = make_results()
    for task, leaf in LEAVES.items():
        content["n-samples"][task]["effective"] = leaf.documents
    content["config"]["gen_kwargs"] = {"temperature": 0.5}
    cut = {"prompts": 250, "cut": 216, "longest": 1342, "room": 256, "positions": 256}
    content["ibnorm"] = {
        "clamped": {IFEVAL: {"asked": 1280, "given": 128}},
        "prompts": {SNARKS: cut, IFEVAL: {**cut, "cut": 0}},
    }
    return {**content, "groups": {}}


def test_what_is_no_full_measurement_says_so_everywhere(command: Callable, tmp_path: Path, monkeypatch: Any) -> None:
    path = write_results(tmp_path / "results.json", unusual())
    _, out, _ = command("leaderboard", path, "--format", "json")
    found = rows(out)
    assert found[SNARKS]["remark"] == "216 of 250 prompts cut (the longest to 256 of 1,342 tokens)"
    assert found[IFEVAL]["remark"] == "gen_kwargs {'temperature': 0.5}; 128 of 1,280 new tokens"
    assert found["leaderboard_math_algebra_hard"]["remark"] == "gen_kwargs {'temperature': 0.5}"
    assert found["BBH"]["remark"] == "no full measurement in 1 of 24 parts"
    full = {name for name, row in found.items() if row["full"]}
    assert {"GPQA", "MMLU-PRO", "leaderboard_bbh_navigate"} <= full and full.isdisjoint({SNARKS, IFEVAL, "Average"})
    remarks = json.loads(out)["models"][0]["remarks"]
    assert any(
        line.endswith(f"no full measurement in 2 tasks, first {IFEVAL}: 128 of 1,280 new tokens") for line in remarks
    )
    for style in ("table", "markdown"):
        text = command("leaderboard", path, "--format", style)[1]
        assert found[SNARKS]["remark"] in text and all(f"note: {line}" in text for line in remarks)
    written: list[str] = []
    monkeypatch.setattr(Text, "set_text", lambda self, text: written.append(str(text)))
    assert command("leaderboard", path, "--chart", tmp_path / "chart.png")[0] == 0
    drawn = " ".join(" ".join(written).split())
    assert all(line in drawn for line in remarks) and "no full measurement" in drawn


def test_a_half_results_file_of_a_failure_is_passed_over(command: Callable, refused: Callable, tmp_path: Path) -> None:
    whole, half = unusual(), unusual()
    half["results"] = {SNARKS: half["results"][SNARKS]}
    del half["groups"]  # the last that is written
    write_results(tmp_path / "eval" / "results_1.json", half)
    write_results(tmp_path / "eval" / "results_2.json", whole)
    _, out, _ = command("leaderboard", tmp_path, "--format", "json")
    model = json.loads(out)["models"][0]
    assert "results_1.json: passed over, left by an evaluation that did not end" in model["remarks"]
    assert not model["missing"]
    write_results(tmp_path / "eval" / "results_1.json", {**half, "groups": {}})
    assert "both hold leaderboard_bbh_snarks" in refused("leaderboard", tmp_path)
    (tmp_path / "eval" / "results_2.json").unlink()
    write_results(tmp_path / "eval" / "results_1.json", half)
    assert command("leaderboard", tmp_path, "--partial")[0] == 0  # it is all there is


def test_missing_paths_get_one_line(refused: Callable, tmp_path: Path) -> None:
    assert "do not exist" in refused("leaderboard", tmp_path / "none.json")
    assert "holds no leaderboard results" in refused("leaderboard", tmp_path)


def test_a_run_keeps_its_scores_with_the_weights_they_belong_to(tmp_path, capsys):
    """What a card may show: its own file in the run, and the digest of the evaluated model's files in it."""
    content = make_results()
    content["ibnorm"] = {"settings": {"model_sha256": "ab" * 32}}
    (tmp_path / "run" / "eval").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "run" / "eval" / "results_1.json").write_text(json.dumps(content))
    leaderboard([str(tmp_path / "run")], partial=True)
    kept = json.loads((tmp_path / "run" / "eval" / "leaderboard.json").read_text())
    assert [model["model_sha256"] for model in kept["models"]] == ["ab" * 32] and kept["models"][0]["rows"]
