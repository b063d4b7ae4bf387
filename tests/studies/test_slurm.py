# SPDX-License-Identifier: Apache-2.0
"""A study under a real Slurm: the report is that of this machine's own processes, byte for byte."""

import os

import pytest

from ibnorm_hf.studies.compare import open_study
from ibnorm_hf.studies.executors import Slurm

from ..slurm import one_node, require_slurm
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
    for path in (tmp_path / "here" / "report").iterdir():
        if path.name != "timing.json":
            assert (tmp_path / "there" / "report" / path.name).read_bytes() == path.read_bytes(), path.name
