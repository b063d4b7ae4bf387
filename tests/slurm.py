# SPDX-License-Identifier: Apache-2.0
"""A real Slurm of one node in a temporary folder, without systemd: munge, controller and node daemon of Debian."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")


def require_slurm() -> None:
    """Skip with a line where Slurm is not installed; in CI that is a failure."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        why = f"no Slurm to start here ({', '.join(missing) or 'not root'}): apt-get install slurmctld slurmd munge"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """Start Slurm; yields the environment variables with which its commands find it."""
    for name in ("state", "spool", "log", "munge"):
        (folder / name).mkdir(mode=0o700 if name == "munge" else 0o755)
    key = folder / "munge" / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    host, (control, node) = socket.gethostname().split(".")[0], _free_ports(2)
    config = folder / "slurm.conf"
    config.write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
SlurmUser=root
SlurmdUser=root
SlurmctldPort={control}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
    )
    munge = [f"--{name}={folder}/munge/munge.{end}" for name, end in _MUNGE_FILES.items()]
    environment = {"SLURM_CONF": str(config)}
    try:
        subprocess.run(["munged", *munge, "--force"], check=True, capture_output=True, timeout=30)
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon, "-f", str(config)], check=True, capture_output=True, timeout=30)
        _wait_until_idle(environment)
        yield environment
    finally:
        _end_jobs(environment)
        for path in (folder / "slurmd.pid", folder / "slurmctld.pid", folder / "munge" / "munge.pid"):
            with contextlib.suppress(OSError, ValueError):
                _end(int(path.read_text()))


_MUNGE_FILES = {
    "key-file": "key",
    "socket": "sock",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}


def _end(process: int) -> None:
    """End a daemon and see it gone: the controller writes its state as it ends, and then the folder may go."""
    os.kill(process, signal.SIGTERM)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        os.kill(process, 0)  # OSError: it is gone
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _ask(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def _wait_until_idle(environment: dict[str, str]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        told = _ask(environment, "sinfo", "-h", "-o", "%T")
        if told.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    raise RuntimeError(f"Slurm did not become idle: {told.stdout} {told.stderr}")


def _end_jobs(environment: dict[str, str]) -> None:
    """Cancel what is queued or runs, and see it end: a step whose daemon is gone waits for it for ever."""
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        end = time.monotonic() + 60
        while time.monotonic() < end and _ask(environment, "squeue", "-h", "-o", "%A").stdout.strip():
            _ask(environment, "scancel", "--user=root", "--full", "--signal=KILL")
            _ask(environment, "scancel", "--user=root")
            time.sleep(0.5)
