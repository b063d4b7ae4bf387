# SPDX-License-Identifier: Apache-2.0
"""The sbatch script of recipes/accelerate/README.md, as it stands there, under a real Slurm of one node."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ibnorm_hf.training import job
from ibnorm_hf.training.keys.recipe import load_recipe

from ..slurm import one_node, require_slurm
from ..training.conftest import TINY, cache

__all__ = ["cache"]  # a fixture
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "recipes" / "accelerate" / "README.md"
KEYS = ["--global_batch_size", "8", "--per_device_train_batch_size", "4", "--max_steps", "120", "--save_steps", "60"]
KEYS += ["--eval_steps", "60", "--logging_steps", "1", "--warmup_steps", "2", "--learning_rate", "1e-3"]


def script(recipe: Path, run: Path) -> str:
    """The page's script for one node of two CPU processes in place of two nodes of eight accelerators."""
    (text,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text(), re.DOTALL)
    changes = {
        "--nodes=2": "--nodes=1",
        " --gpus-per-node=8": "",
        "SLURM_NNODES * 8": "SLURM_NNODES * 2",
        "recipes/llama/1b.yaml --output_dir runs/llama-1b": f"{recipe} --output_dir {run} {' '.join(KEYS)}",
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Jobs:
    """Slurm's commands from the root of the checkout, with the program and python of these tests."""

    def __init__(self, environment: dict[str, str]) -> None:
        first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": first, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self.environment = {**os.environ, **environment, **own, "PYTHONPATH": str(ROOT)}

    def call(self, *words: str, text: str | None = None) -> str:
        done = subprocess.run(
            words, input=text, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, text: str, output: Path) -> str:
        return self.call("sbatch", "--parsable", f"--output={output}", text=text)

    def running(self, number: str) -> bool:
        return self.call("squeue", "--noheader", "--format=%i", "--states=PENDING,RUNNING,COMPLETING").find(number) >= 0

    def wait(self, number: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while self.running(number):
            assert time.monotonic() < end, f"job {number} does not end"
            time.sleep(0.5)


def losses(run: Path) -> list[float]:
    return [
        line["loss"]
        for text in (run / "metrics.jsonl").read_text().splitlines()
        if "loss" in (line := json.loads(text))
    ]


@pytest.mark.faults("SIGTERM of Slurm, and the same job again")
def test_the_script_of_the_page_runs_is_ended_and_goes_on(tmp_path):
    require_slurm()
    (tmp_path / "tiny.yaml").write_text(TINY)
    job.pretrain(load_recipe(tmp_path / "tiny.yaml", [*KEYS, "--output_dir", str(tmp_path / "one")]))
    (tmp_path / "slurm").mkdir()
    run, text = tmp_path / "run", script(tmp_path / "tiny.yaml", tmp_path / "run")
    with one_node(tmp_path / "slurm") as environment:
        jobs = Jobs(environment)
        number = jobs.submit(text, tmp_path / "first.txt")
        while jobs.running(number) and not ((run / "metrics.jsonl").is_file() and losses(run)):
            time.sleep(0.2)
        said = (tmp_path / "first.txt").read_text()
        assert jobs.running(number), said
        jobs.call("scancel", "--signal=TERM", number)  # what Slurm itself sends two minutes before the end
        jobs.wait(number)
        said = (tmp_path / "first.txt").read_text()
        (checkpoint,) = run.glob("checkpoint-*")
        step = json.loads((checkpoint / "manifest.json").read_text())["step"]
        assert 0 < step < 120 and not (run / "model").exists(), said
        jobs.wait(jobs.submit(text, tmp_path / "second.txt"))
        said = (tmp_path / "second.txt").read_text()
    assert f"resume: step {step}" in said or f"checkpoint-{step}" in said, said
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "one", run))
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert one.keys() == two.keys()
