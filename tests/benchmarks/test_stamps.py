# SPDX-License-Identifier: Apache-2.0
"""Every result that a page shows says when, where and with which code it was measured; older ones are named."""

import json
import re
import subprocess
import warnings
from pathlib import Path

import pytest

from recipes.benchmarks import stamp

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "recipes/README.md",
    "recipes/benchmarks/README.md",
    "CONTRIBUTING.md",
)


def test_every_result_has_a_stamp_and_older_ones_are_named():
    for result in stamp.RESULTS:
        found = stamp.read(ROOT / result)
        assert not [key for key in stamp.KEYS if key not in found], result
        assert re.fullmatch("[0-9a-f]{40}(-dirty)?", found["commit"]) and re.fullmatch(
            r"\d{4}-\d\d-\d\d", found["date"]
        )
        assert found["command"].startswith(("python", "IBNORM_FAULTS_RESULTS=")), result
        assert set(found["versions"]) >= {"python", "torch", "transformers"} and found["ibnorm_hf"], result
        if "reconstructed" not in found:
            assert all(found["versions"].values()) and found["hardware"]["cpu_cores"], result
        for place in stamp.RESULTS[result]:
            assert (ROOT / place).exists(), f"{place} is gone: {result} must say what it measures now"
    report = stamp.report()
    assert len(report) == len(stamp.RESULTS) and not [line for line in report if ": no " in line]
    for line in report:
        if "older than its code" in line:
            warnings.warn(line, stacklevel=1)


def test_no_result_is_shown_without_one():
    kept = [*(ROOT / "recipes/benchmarks/results").iterdir(), *(ROOT / "model_cards").glob("*.json")]
    results = {p.relative_to(ROOT).as_posix() for p in kept if p.suffix in (".json", ".csv")}
    assert {r for r in results if not r.endswith(".stamp.json")} == set(stamp.RESULTS)
    for page in PAGES:
        for name in re.findall(r"(?:results|model_cards)/[\w-]+\.(?:json|csv)", (ROOT / page).read_text()):
            assert any(result.endswith(name) for result in stamp.RESULTS), f"{page} shows {name}"


def test_ci_prints_their_ages():
    assert "\npython recipes/benchmarks/stamp.py\n" in (ROOT / ".ci" / "run").read_text()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one result, of the code as it stands there."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]

    def commit():
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", "x"], check=True)

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("a = 1\n")
    (tmp_path / "other.py").write_text("b = 1\n")
    commit()
    monkeypatch.setattr(stamp, "ROOT", tmp_path)
    monkeypatch.setattr(stamp, "RESULTS", {"r.json": ("code",)})
    monkeypatch.setattr(stamp.stamp.__globals__["_git"], "__kwdefaults__", {"root": tmp_path})
    found = {**stamp.stamp("r.json"), "code_sha256": stamp.code_sha256(("code",), tmp_path)}
    (tmp_path / "r.json").write_text(json.dumps({"value": 1, "stamp": found}))
    return tmp_path, commit


def test_a_result_is_older_once_its_code_changed(repository):
    root, commit = repository
    (root / "other.py").write_text("b = 2\n")
    (root / "code" / "notes.txt").write_text("no code")
    commit()
    assert stamp.age("r.json", root) is None
    (root / "code" / "a.py").write_text("a = 2\n")
    assert stamp.age("r.json", root) == "older than its code: changes that are not committed"
    commit()
    assert stamp.age("r.json", root) == "older than its code: 1 commits since changed it"
    (root / "code" / "a.py").write_text("a = 1\n")
    assert stamp.age("r.json", root) is None  # what was measured is there again
    content = json.loads((root / "r.json").read_text())
    content["stamp"]["commit"] = "f" * 40
    (root / "r.json").write_text(json.dumps(content))
    (root / "code" / "a.py").unlink()
    assert "its commit is not in this history" in stamp.age("r.json", root)
    del content["stamp"]["date"]
    (root / "r.json").write_text(json.dumps(content))
    assert stamp.report(root) == ["r.json: no date"]


def test_a_file_measured_in_parts_names_the_commits_of_all(repository, monkeypatch):
    root, commit = repository
    first = stamp.stamped("r.json", {"runs": [1]})
    (root / "code" / "a.py").write_text("a = 3\n")
    commit()
    second = stamp.stamped("r.json", {**first, "runs": [1, 2]})
    assert second["runs"] == [1, 2] and set(second["stamp"]) >= set(stamp.KEYS)
    assert second["stamp"]["commits"] == [first["stamp"]["commit"], second["stamp"]["commit"]]
    assert len(set(second["stamp"]["commits"])) == 2


def test_a_new_result_beside_it_makes_no_commit_dirty(repository):
    root, commit = repository
    results = root / stamp.HERE / "results"
    results.mkdir(parents=True)
    (results / "other.json").write_text("{}")
    commit()
    (results / "other.json").write_text('{"value": 1}')
    assert not stamp.commit().endswith("-dirty")
    (root / "other.py").write_text("b = 3\n")
    assert stamp.commit().endswith("-dirty")
