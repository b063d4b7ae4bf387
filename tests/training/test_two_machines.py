# SPDX-License-Identifier: Apache-2.0
"""Two launchers on 127.0.0.1 stand for two machines: each has a cache and a disk of its own, gloo between them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ibnorm_hf.training import job
from ibnorm_hf.training.keys.recipe import load_recipe

from .conftest import TINY
from .test_processes import KEYS, ROOT, back_to, same_run


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Machine:
    """One launcher with one process, at home in a folder of its own."""

    def __init__(self, home: Path, rank: int, port: int, *keys: str) -> None:
        home.mkdir(exist_ok=True)
        (home / "tiny.yaml").write_text(TINY)
        self.home, self.output = home, home / "output.txt"
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank)]
        command += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
        command += [str(ROOT / "recipes" / "pretrain.py"), "tiny.yaml", *KEYS, "--output_dir", "run", *keys]
        own = {"IBNORM_CACHE": str(home / "cache"), "HF_HOME": str(home / "hf")}
        # Processes of torchrun must find each other by this address, whatever the host is called.
        own |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with open(self.output, "w") as out:
            self.process = subprocess.Popen(
                command, cwd=home, env=os.environ | own, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, seconds: float = 240) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """The machine loses its power: workers, which have sessions of their own, and launcher."""
        for worker in self.workers():
            os.kill(worker, signal.SIGKILL)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def said(self) -> str:
        return self.output.read_text()

    def files(self) -> set[str]:
        return {p.relative_to(self.home).as_posix() for p in (self.home / "run").rglob("*") if p.is_file()}


def start(tmp_path: Path, *keys: str) -> list[Machine]:
    port = free_port()
    return [Machine(tmp_path / f"machine{rank}", rank, port, *keys) for rank in (0, 1)]


@pytest.fixture
def one_process(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    job.pretrain(load_recipe(tmp_path / "tiny.yaml", [*KEYS, "--output_dir", str(tmp_path / "one")]))
    return tmp_path / "one"


@pytest.mark.faults
def test_two_machines_with_disks_of_their_own_equal_one_process(one_process: Path, tmp_path: Path):
    machines = start(tmp_path)
    assert [machine.wait() for machine in machines] == [0, 0], machines[0].said()[-3000:] + machines[1].said()[-3000:]
    first, second = machines
    same_run(one_process, first.home / "run")
    manifest = json.loads((first.home / "run" / "checkpoint-6" / "manifest.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(manifest["files"])  # that of the other disk, too
    assert not second.files()  # the run is the first machine's
    # Between two logs; only the first machine has the checkpoint, and the other is sent what it lacks.
    run = back_to(first.home / "run", 4, tmp_path / "half")
    (first.home / "run").rename(tmp_path / "whole")
    run.rename(first.home / "run")
    # What the other one sees of the run is older: the newest checkpoint is absent, or another one of that name.
    stale = second.home / "run"
    stale.mkdir(exist_ok=True)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", stale / "checkpoint-2")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", stale / "checkpoint-4")
    before = second.files()
    machines = start(tmp_path)
    assert [machine.wait() for machine in machines] == [0, 0], machines[0].said()[-3000:] + machines[1].said()[-3000:]
    assert "resume: checkpoint-4" in machines[0].said()
    same_run(one_process, machines[0].home / "run")
    assert machines[1].files() == before and not any((tmp_path / "machine1" / "cache" / "received").iterdir())


@pytest.mark.faults("a machine of several that dies")
def test_a_machine_that_dies_ends_the_other_with_its_reason(tmp_path: Path):
    machines = start(tmp_path, "--max_steps", "100000", "--save_steps", "50", "--eval_strategy", "no")
    log = machines[0].home / "run" / "metrics.jsonl"
    limit = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < limit:
        assert machines[0].process.poll() is None, machines[0].said()[-3000:]
        time.sleep(0.2)
    machines[1].kill()
    assert machines[0].wait(60) != 0
    assert "another process of this run has ended" in machines[0].said()
    assert not (machines[0].home / "run" / "model").exists()
