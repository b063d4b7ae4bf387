# SPDX-License-Identifier: Apache-2.0
"""The one call that a GPU gets: the same code on tiny shapes, under Triton's interpreter."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "benchmarks" / "gpu.py"


def call(*words, **environment):
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT)


def test_it_checks_times_and_writes_its_files(tmp_path):
    pytest.importorskip("triton")
    done = call("--small", "--out", str(tmp_path), TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "48 of 48 cases equal the float64 reference" in done.stdout
    names = {"checks-cuda.csv", "norms-cuda.csv", "train_step-cuda.csv"}
    assert {p.name for p in tmp_path.iterdir()} == names | {"norms-cuda.png"} | {f"{n}.stamp.json" for n in names}
    rows = {name: list(csv.DictReader((tmp_path / name).open())) for name in names}
    assert {row["right"] for row in rows["checks-cuda.csv"]} == {"True"}
    assert {"F.layer_norm", "LlamaRMSNorm", "ibnorm-l", "ibnorm-t"} <= {row["layer"] for row in rows["norms-cuda.csv"]}
    assert [row["norm"] for row in rows["train_step-cuda.csv"]] == ["vanilla", "ibnorm-l"]


def test_what_measures_nothing_does_not_write_results(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small"])
    pytest.importorskip("triton")
    with pytest.raises(SystemExit, match="name another folder with --out"):
        pytest.importorskip("gpu").main()
