# SPDX-License-Identifier: Apache-2.0
"""A study under a real Slurm: the report is that of this machine's own processes, byte for byte."""

import os
import random
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ibnorm_hf.studies.compare import open_study
from ibnorm_hf.studies.executors import Slurm
from ibnorm_hf.studies.runs import Job

from ..slurm import one_node, require_slurm
from .kills import content
from .test_compare import STUDY, Here, write

NODE = socket.gethostname().split(".")[0]


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
def test_a_job_that_slurm_killed_is_told_and_not_waited_for(tmp_path, monkeypatch):
    """This Slurm has no accounting, the only thing that submitit asks."""
    require_slurm()
    (tmp_path / "node").mkdir()
    with one_node(tmp_path / "node") as environment:
        for name, value in (environment | {"PYTHONPATH": os.getcwd()}).items():
            monkeypatch.setenv(name, value)
        subprocess.run(["scontrol", "update", f"NodeName={NODE}", "State=DRAIN", "Reason=test"], check=True)
        jobs = [Job("absent.yaml", [], str(tmp_path / name)) for name in ("a", "b")]
        told = Slurm(tmp_path / "jobs", minutes=10, poll_s=0.2, queue_s=1).run(jobs)
        killer = threading.Timer(4, subprocess.run, [["scancel", "--me"]])
        killer.start()
        ended = {Path(job.folder).name: why for job, why in told}
        killer.join()
    assert set(ended) == {"a", "b"} and all("ended without a result" in why for why in ended.values())


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
    shutil.rmtree(tmp_path)  # nobody writes there any more
    assert not tmp_path.exists()
