# SPDX-License-Identifier: Apache-2.0
"""Twenty real SIGKILLs at random moments, several in a row, for two norms; a longer round is one command away."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .compare import same

ROOT = Path(__file__).parents[2]


@pytest.mark.faults("SIGKILL at a random moment")
def test_runs_survive_random_kills(tmp_path: Path, cache: Path, record_property, session_seed: int):
    record_property("tried", 20)
    command = [sys.executable, "-m", "tests.faults.kills", "--count", "20", "--seed", str(session_seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "IBNORM_CACHE": str(cache)}
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "kills.json")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    print(done.stdout)  # the seed, if this fails
    assert done.returncode == 0, done.stderr[-3000:]
    tally = json.loads((tmp_path / "kills.json").read_text())
    assert tally["tried"] == tally["survived"] == 20 and tally["lost"] == 0
    assert tally["in_a_row"] >= 2
    assert sum(tally["where"].values()) == 20


def test_the_comparison_sees_a_single_bit():
    import torch

    one = {"state": {0: {"exp_avg": torch.zeros(3)}}, "groups": [{"lr": 0.1, "params": [0]}]}
    two = {"state": {0: {"exp_avg": torch.tensor([0.0, 0.0, 1e-45])}}, "groups": [{"lr": 0.1, "params": [0]}]}
    assert same(one, one) and not same(one, two)
    assert not same({"lr": 0.1}, {"lr": 0.1000000000000001}) and not same([1], [1, 2])
