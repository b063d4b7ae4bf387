# SPDX-License-Identifier: Apache-2.0
"""Real SIGKILLs of a study at random moments; the real command and Slurm are one command away (see ``kills``)."""

import json
import subprocess
import sys

import pytest

from .kills import ROOT

COUNT = 8


@pytest.mark.faults
def test_a_study_killed_at_random_moments_ends_in_the_undisturbed_report(session_seed):
    words = [sys.executable, "-m", "tests.studies.kills", "--forked", str(COUNT), "--seed", str(session_seed)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    print(done.stdout)  # the seed, if this fails
    assert done.returncode == 0, done.stderr[-3000:]
    tally = json.loads(done.stdout.splitlines()[-1])["forked"]
    assert tally["tried"] == sum(tally["where"].values()) == COUNT and tally["in_a_row"] >= 2
