# SPDX-License-Identifier: Apache-2.0
"""The runs of a study travel in one file: gone on from, never trusted, refused where other code made them."""

import gzip
import io
import json
import shutil
import signal
import tarfile

import pytest

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.studies import archive
from ibnorm_hf.studies.archive import ARCHIVE, pack, unpack
from ibnorm_hf.studies.code import code_sha256
from ibnorm_hf.studies.compare import open_study

from .kills import STUDY, content, write_study
from .test_compare import Here


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the study's file, its folder, its archive)."""
    folder = tmp_path_factory.mktemp("größe mit Abstand")
    study = write_study(folder, STUDY.replace("  l: ", "  ль 1: "))
    open_study(study, folder / "out", Here(), lambda text: None).run()
    return study, folder / "out", folder / "out" / "report" / ARCHIVE


def members(path):
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


def test_the_archive_is_small_the_same_twice_and_says_nothing_of_the_machine(finished, tmp_path):
    _, out, path = finished
    for place in (tmp_path / "a", tmp_path / "b" / "c"):
        pack(out / "runs", place)
        assert place.read_bytes() == path.read_bytes()
    found = members(path)
    assert {name.rpartition("/")[2] for name in found} == {
        *("config.yaml", "data.json", "environment.json", "metrics.jsonl", "validation.json"),
    }
    assert list(found) == sorted(found) and len(found) == 4 * 5 and path.stat().st_size < 4 * 4000
    raw = gzip.decompress(path.read_bytes())
    assert str(out).encode() not in raw and str(out.parent).encode() not in raw and b"LICENSE" in raw


def test_a_study_goes_on_from_the_archive_alone(finished, tmp_path):
    study, out, path = finished
    here, said = Here(), []
    comparison = open_study(study, tmp_path / "out", here, said.append)
    comparison.take(path)
    comparison.run()
    assert here.made == [] and "4 taken" in said[0]
    assert content(tmp_path / "out") == content(out)
    assert (tmp_path / "out" / "report" / ARCHIVE).read_bytes() == path.read_bytes()
    assert [found.name for found in (tmp_path / "out").iterdir() if found.name.startswith(".")] == []


def test_an_arm_added_to_an_archive_makes_its_own_runs_alone(finished, tmp_path):
    _, _, path = finished
    text = STUDY.replace("  l: ", "  ль 1: ").replace("claim_seeds", "  t: {norm_type: ibnorm-t}\nclaim_seeds")
    here = Here()
    comparison = open_study(write_study(tmp_path, text), tmp_path / "out", here, lambda text: None)
    comparison.take(path)
    comparison.take(path)  # what is there stays
    comparison.run()
    assert len(here.made) == 2 and all(name.startswith("t-") for name in here.made)


def test_a_run_that_another_command_makes_in_that_moment_is_left_to_it(finished, tmp_path, monkeypatch):
    _, _, path = finished
    unpack(path, tmp_path / "runs", code_sha256())
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setattr(archive.os.path, "lexists", lambda place: False)
    assert unpack(path, tmp_path / "runs", code_sha256()) == (0, [])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of a file's size on this system")
def test_without_room_nothing_is_left_behind(finished, tmp_path):
    import resource

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
        with pytest.raises(UserError, match="cannot be unpacked: File too large; free some room"):
            unpack(finished[2], tmp_path / "runs", code_sha256())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [found.name for found in tmp_path.rglob("*")] == ["runs"]


def test_the_place_of_the_corpus_does_not_count_and_its_text_does(finished, tmp_path):
    study, _, path = finished
    base = (study.parent / "base.yaml").read_text()
    where = base.split("corpus: ")[1].split("\n")[0]
    for text, made in (("", 0), (" And more, " * 3000, 4)):
        folder = tmp_path / f"of{made}"
        folder.mkdir()
        copy = folder / "LICENSE"
        shutil.copy(where, copy)
        copy.write_text(copy.read_text() + text)
        here = Here()
        elsewhere = write_study(folder, study.read_text(), base.replace(where, str(copy)))
        comparison = open_study(elsewhere, folder / "out", here, lambda text: None)
        comparison.take(path)
        comparison.run()
        assert len(here.made) == made


def test_runs_of_other_code_are_left_out_and_their_commit_is_named(finished, tmp_path):
    _, out, path = finished
    commit = json.loads((out / "report" / "report.json").read_text())["made_by"]["commits"]
    with pytest.raises(UserError, match="all of its 4 runs were made by other code") as caught:
        unpack(path, tmp_path / "runs", "another")
    assert all(name in str(caught.value) for name in commit) and not list((tmp_path / "runs").iterdir())
    # One run of it under a name that its recipe does not give: left out as well.
    changed = {name.replace("seed2-", "seed2-x"): text for name, text in members(path).items()}
    taken, others = unpack(write(tmp_path / "some.tar.gz", changed), tmp_path / "runs", code_sha256())
    assert taken == 2 and others[0].startswith("2 were made by other code")


def test_an_edited_run_is_refused_or_left_out(finished, tmp_path):
    """The name is a digest of the recipe and the samples, so neither can be edited under it."""
    _, _, path = finished
    for old, new in ((b"seed: 2", b"seed: 9"), (b'"blocks": "', b'"blocks": "0')):
        changed = {name: text.replace(old, new) for name, text in members(path).items()}
        try:
            _, others = unpack(write(tmp_path / "edited.tar.gz", changed), tmp_path / "runs", code_sha256())
        except UserError as error:
            others = [str(error)]
        assert "other code" in others[0]


def write(path, files, change=lambda entry: None):
    """A tar of files, each entry changed."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            change(entry)
            tar.addfile(entry, io.BytesIO(text))
    return path


def as_link(entry):
    entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0


def as_hard_link(entry):
    entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, "../../x", 0


def as_device(entry):
    entry.type, entry.size = tarfile.CHRTYPE, 0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("runs/a/config.yaml", as_link),
        ("runs/a/config.yaml", as_hard_link),
        ("runs/a/config.yaml", as_device),
        ("/runs/a/config.yaml", None),
        ("runs/../config.yaml", None),
        ("runs/..\\a/config.yaml", None),
        ("runs/a/../../config.yaml", None),
        ("runs/.a/config.yaml", None),
        ("config.yaml", None),
        ("runs/a/model/model.safetensors", None),
        ("runs/a/model.pt", None),
        ("runs/a", None),
    ],
)
def test_an_archive_with_anything_else_is_refused(tmp_path, name, change):
    path = write(tmp_path / "x.tar.gz", {name: b"x"}, change or (lambda entry: None))
    with pytest.raises(UserError, match=r"not trusted: it holds .*, which no archive of a study has"):
        unpack(path, tmp_path / "out" / "runs", "code")
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir()] == ["x.tar.gz"]


def test_an_archive_that_grows_beyond_all_measure_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_BYTES", 1 << 20)
    path = write(tmp_path / "x.tar.gz", {"runs/a/metrics.jsonl": bytes(2 << 20)})
    assert path.stat().st_size < 1 << 14
    with pytest.raises(UserError, match="larger than 1 MiB"):
        unpack(path, tmp_path / "runs", "code")


def test_a_damaged_or_absent_archive_is_one_sentence(finished, tmp_path, capsys):
    study, _, path = finished
    whole = path.read_bytes()
    texts = {"cut": whole[: len(whole) // 2], "short": whole[:-4], "empty": b"", "text": b"runs", "flipped": whole}
    texts["flipped"] = whole[:900] + bytes([whole[900] ^ 255]) + whole[901:]
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "folder").mkdir()
    (tmp_path / "nothing").write_bytes(write(tmp_path / "t", {}).read_bytes())
    for name in (*texts, "absent", "folder", "nothing"):
        words = ["compare", str(study), "--out", str(tmp_path / "out"), "--from", str(tmp_path / name)]
        assert main(words) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and name in error, error
    assert not any((tmp_path / "out" / "runs").iterdir())
    assert main(["compare", "--table", "t.csv", "--from", str(path)]) == 2


def test_the_report_names_what_made_its_runs(finished):
    _, out, _ = finished
    made = json.loads((out / "report" / "report.json").read_text())["made_by"]
    environment = json.loads(next((out / "runs").glob("*/environment.json")).read_text())
    wanted = {"commits": [environment["commit"]] if environment["commit"] else []}
    assert made == wanted | {name: [environment["versions"][name]] for name in ("torch", "transformers")}
    text = (out / "report" / "report.md").read_text()
    assert f"transformers {made['transformers'][0]}" in text and all(commit in text for commit in made["commits"])
