# SPDX-License-Identifier: Apache-2.0
"""Run folders of a study that are damaged, half deleted or somebody else's: healed, or one sentence, never taken in."""

import json
import shutil
from pathlib import Path

import pytest

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.studies.compare import open_study

from .kills import STUDY, content, write_study
from .test_compare import Here


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    here = Here()
    open_study(write_study(folder, STUDY), folder / "out", here, lambda text: None).run()
    return folder, here.made


@pytest.fixture
def study(finished, tmp_path):
    """(its file, its folder, the last of its runs), which a test may spoil."""
    folder, made = finished
    out = shutil.copytree(folder / "out", tmp_path / "out")
    return folder / "study.yaml", out, out / "runs" / made[-1]


def again(study):
    here = Here()
    judged = open_study(study[0], study[1], here, lambda text: None).run()
    return here.made, judged


def damage_validation(run):
    (run / "eval" / "validation.json").write_text('{"loss": 5.')


def damage_types(run):
    (run / "eval" / "validation.json").write_text('{"loss": "low"}')


def lose_log(run):
    (run / "metrics.jsonl").unlink()


def lose_most(run):
    for name in ("eval", "model"):
        shutil.rmtree(run / name)
    (run / "data.json").unlink()


def lose_recipe(run):
    (run / "config.yaml").unlink()


@pytest.mark.faults
@pytest.mark.parametrize("damage", [damage_validation, damage_types, lose_log, lose_most, lose_recipe])
def test_a_damaged_run_is_set_aside_listed_and_made_again(study, damage):
    wanted = content(study[1])
    damage(study[2])
    made, _ = again(study)
    aside = study[2].with_name(f"{study[2].name}.damaged-1")
    assert made == [study[2].name] and aside.is_dir()
    found = content(study[1])
    assert [name for name in wanted if found[name] != wanted[name]] == ["runs.csv"]
    assert f"{aside.name}" in found["runs.csv"].decode()


def test_a_run_of_another_recipe_under_that_name_is_refused(study):
    config = study[2] / "config.yaml"
    config.write_text(config.read_text().replace("seed: 2", "seed: 9"))
    with pytest.raises(UserError, match=r"holds another run \(seed is 9 there and 2 here\)"):
        again(study)


def test_what_else_lies_in_the_folder_is_listed_and_no_more(study):
    runs = study[1] / "runs"
    (runs / "a file").write_text("x")
    (runs / "empty").mkdir()
    (runs / "foreign").mkdir()
    (runs / "foreign" / "config.yaml").write_text("a: [")
    shutil.copytree(study[2], runs / "l-1x-seed77-0123456789ab")
    wanted = json.loads((study[1] / "report" / "report.json").read_text())
    made, judged = again(study)
    assert made == [] and judged == wanted
    text = (study[1] / "report" / "runs.csv").read_text()
    assert "earlier" in text and "l-1x-seed77-0123456789ab" in text and "foreign" in text and "a file" not in text


def test_a_file_where_a_run_should_be_is_one_sentence(study):
    shutil.rmtree(study[2])
    Path(study[2]).write_text("x")
    with pytest.raises(UserError, match=r"cannot be written|failed twice"):
        again(study)


@pytest.mark.parametrize("more", [[], ["--from", "runs.tar.gz"], ["--executor", "slurm"]])
def test_a_folder_that_cannot_be_written_is_one_sentence(finished, tmp_path, more, capsys):
    (tmp_path / "file").write_text("x")
    places = [tmp_path / "file" / "out", *(Path(p) for p in ("/proc/none",) if Path("/proc").is_dir())]
    for place in places:
        assert main(["compare", str(finished[0] / "study.yaml"), "--out", str(place), *more]) == 2
        error = capsys.readouterr().err
        assert f"study folder {place} cannot be written" in error and error.count("\n") == 1
