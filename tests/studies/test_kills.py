# SPDX-License-Identifier: Apache-2.0
"""Real SIGKILLs of a study at random moments, few of each kind; many of them are one command away (see ``kills``)."""

import json
import subprocess
import sys

import pytest

from ..slurm import require_slurm
from .kills import ROOT


def torture(kind, count, seed):
    """The tally of so many kills; every study must end in the undisturbed report."""
    words = [sys.executable, "-m", "tests.studies.kills", f"--{kind}", str(count), "--seed", str(seed)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    print(done.stdout)  # the seed, if this fails
    assert done.returncode == 0, done.stderr[-3000:]
    tally = json.loads(done.stdout.splitlines()[-1])[kind]
    assert tally["tried"] == sum(tally["where"].values()) == count and tally["complaints"] == []
    return tally


@pytest.mark.faults
def test_a_study_killed_at_random_moments_ends_in_the_undisturbed_report(session_seed):
    assert torture("forked", 4, session_seed)["in_a_row"] >= 2


@pytest.mark.faults
def test_so_does_the_real_command(session_seed):
    assert set(torture("local", 1, session_seed)["where"]) <= {"the command alone", "the command and its workers"}


@pytest.mark.faults
def test_and_under_a_real_slurm_whose_jobs_are_killed_too(session_seed):
    require_slurm()
    assert set(torture("slurm", 1, session_seed)["where"]) <= {"the command alone", "a job"}
