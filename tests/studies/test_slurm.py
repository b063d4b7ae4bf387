# SPDX-License-Identifier: Apache-2.0
"""A study under a real Slurm: the report is that of this machine's own processes, byte for byte."""

import os
import random
import subprocess
import time

import pytest

from ibnorm_hf.studies.compare import open_study
from ibnorm_hf.studies.executors import Slurm

from ..slurm import one_node, require_slurm
from .kills import content
from .test_compare import STUDY, Here, write


@pytest.mark.faults
def test_a_study_under_slurm_ends_in_the_same_report(tmp_path, monkeypatch):
    require_slurm()
    study = write(tmp_path, STUDY.replace("budgets: [1, 2]", "budgets: [1]").replace("[1, 2, 3, 4, 5]", "[1, 2]"))
    open_study(study, tmp_path / "here", Here(), lambda text: None).run()
    (tmp_path / "slurm").mkdir()
    with one_node(tmp_path / "slurm") as environment:
        for name, value in (environment | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}).items():
            monkeypatch.setenv(name, value)
        slurm = Slurm(tmp_path / "jobs", minutes=10, at_once=2, poll_s=1)
        judged = open_study(study, tmp_path / "there", slurm, print).run()
    assert judged["budgets"]["1"]["seeds"] == [1, 2]
    assert content(tmp_path / "there") == content(tmp_path / "here")


@pytest.mark.faults
def test_no_job_outlives_the_node(tmp_path):
    require_slurm()
    mark = f"sleep {random.SystemRandom().randrange(10**8, 10**9)}"

    def alive():
        return [line for line in subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines() if mark in line]

    (tmp_path / "job.sh").write_text(f"#!/bin/sh\nsrun {mark}\n")
    with one_node(tmp_path) as environment:
        words = ["sbatch", "--output=/dev/null", str(tmp_path / "job.sh")]
        for _ in range(2):
            subprocess.run(words, env=os.environ | environment, check=True, capture_output=True)
        end = time.monotonic() + 60
        while not any("srun" not in line for line in alive()) and time.monotonic() < end:
            time.sleep(0.2)
        assert any("srun" not in line for line in alive()), "no job started"
    assert not alive()
