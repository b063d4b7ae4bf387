# SPDX-License-Identifier: Apache-2.0
"""Two processes compute what one does: same samples, losses and validation for the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ibnorm_hf.training import pretrain as job

from .conftest import TINY

ROOT = Path(__file__).parents[2]


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(make_recipe, recipe_file: Path, tmp_path: Path):
    keys = ["--global_batch_size", "8", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "3"]
    job.pretrain(make_recipe(*keys, "--output_dir", tmp_path / "one"))
    recipe_file.write_text(TINY)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "recipes" / "pretrain.py"), str(recipe_file), *keys, "--output_dir", str(tmp_path / "two")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(2 processes x 2 micro-batches)" in done.stdout
    assert done.stdout.count("step 3/6") == 1  # one voice
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert a.get("samples_sha256") == b.get("samples_sha256")
        for key in ("loss", "lr", "grad_norm", "eval_loss", "tokens"):
            assert (key in a) == (key in b)
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=2e-5), key
    facts = [json.loads((tmp_path / run / "eval" / "validation.json").read_text()) for run in ("one", "two")]
    assert facts[0]["tokens"] == facts[1]["tokens"]
    manifest = json.loads((tmp_path / "two" / "checkpoint-6" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(manifest["files"])
