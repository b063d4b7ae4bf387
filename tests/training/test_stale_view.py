# SPDX-License-Identifier: Apache-2.0
"""Prepared data is made, found and judged by the main process; one that sees the disk late is told, and waits."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ibnorm_hf.training import job

from .forked import launch
from .test_processes import KEYS, same_run

PROGRAM = Path(__file__).with_name("stale_view.py")


def two_processes(view: str, recipe: Path, run: Path, cache: Path) -> subprocess.CompletedProcess:
    return launch(2, PROGRAM, view, recipe, *KEYS, "--output_dir", run, IBNORM_CACHE=str(cache))


def blocks(cache: Path) -> list[Path]:
    return [path for path in (cache / "blocks").iterdir() if path.is_dir()]


pytestmark = pytest.mark.faults  # of a disk that shows what is written late, or not


@pytest.fixture
def one_process(make_recipe, tmp_path: Path) -> Path:
    job.pretrain(make_recipe(*KEYS, "--output_dir", tmp_path / "one"))
    return tmp_path / "one"


@pytest.mark.parametrize("view", ["missing", "old", "late"])
def test_a_late_process_is_told_what_is_prepared(
    one_process: Path, recipe_file: Path, cache: Path, tmp_path: Path, view: str
):
    mine = tmp_path / "cache"
    if view != "missing":  # found, not made
        shutil.copytree(cache, mine)
    done = two_processes(view, recipe_file, tmp_path / "two", mine)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert ("data: packing" in done.stdout) is (view == "missing")
    same_run(one_process, tmp_path / "two")
    assert len(blocks(mine)) == (1 if view == "missing" else len(blocks(cache)))
    assert not list((mine / "held").iterdir())


def test_damage_that_the_main_process_sees_is_told_to_all(
    one_process: Path, recipe_file: Path, cache: Path, tmp_path: Path
):
    mine = tmp_path / "cache"
    shutil.copytree(cache, mine)
    name = json.loads((one_process / "data.json").read_text())["fingerprints"]["blocks"]
    path = mine / "blocks" / name / "train-00000.arrow"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    done = two_processes("missing", recipe_file, tmp_path / "run", mine)
    assert done.returncode != 0
    assert "error: prepared data" in done.stderr and "does not match its checksum" in done.stderr
    assert not (tmp_path / "run" / "data.json").exists()
