# SPDX-License-Identifier: Apache-2.0
"""Where runs run: on this machine, or as Slurm jobs by submitit. What is left to do is decided by the study alone."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ..common.errors import UserError
from .runs import Job, begin, execute

_RUNS_A_PROCESS = 25  # then a fresh one, so that nothing a run leaves behind piles up


class Executor(Protocol):
    """Makes jobs; yields (job, None) as each ends, or (job, why) where it failed. Order is free."""

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, str | None]]:
        """Make all jobs."""
        ...


@dataclass
class Local:
    """Processes of this machine, each with as many threads; together they fill its cores unless told otherwise."""

    processes: int = 0
    threads: int = 1

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, str | None]]:
        """As ``Executor.run``. A process that dies takes its job with it and not the others'."""
        count = self.processes or max(1, (os.cpu_count() or 1) // self.threads)
        jobs = [Job(**{**asdict(job), "threads": self.threads}) for job in jobs]
        while jobs:
            # Fresh processes a round: the pool's own renewal, max_tasks_per_child, can wait forever (Python 3.11).
            now, later = jobs[: count * _RUNS_A_PROCESS], jobs[count * _RUNS_A_PROCESS :]
            left: list[Job] = []
            for job, why in self._round(now, min(count, len(now))):
                if why == _LOST:
                    left.append(job)
                else:
                    yield job, why
            if len(left) == len(now):
                # Not one job ended: the first of them kills its process every time.
                yield left.pop(0), "its process was killed; memory may have run out"
            jobs = left + later

    def _round(self, jobs: list[Job], count: int) -> Iterator[tuple[Job, str | None]]:
        variables = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        with (
            _environment(**variables),
            ProcessPoolExecutor(count, _context(), begin, ({**os.environ},)) as pool,
        ):
            futures: dict[Future[None], Job] = {pool.submit(execute, job): job for job in jobs}
            while futures:
                done, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures.pop(future), _why(future)


def _context() -> Any:
    """Forks of one process that has imported everything, where the system has them; each imports anew elsewhere."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ibnorm_hf.training.job", __name__])
    return context


_LOST = "lost"


def _why(future: Future[None]) -> str | None:
    error = future.exception()
    if error is None:
        return None
    if isinstance(error, BrokenExecutor):
        return _LOST
    return " ".join(str(error).split())[:300] or type(error).__name__


class _environment:
    """Environment variables for the processes started inside a ``with`` block."""

    def __init__(self, **values: str) -> None:
        self.values = values

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.values}
        os.environ.update(self.values)

    def __exit__(self, *_: Any) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class SlurmJob:
    """What a Slurm job calls. At its time limit submitit asks it for ``checkpoint`` and queues that anew."""

    def __call__(self, job: Job) -> None:
        """Make, or go on with, one run."""
        execute(job)

    def checkpoint(self, job: Job) -> Any:
        """The same run once more: it goes on from its own last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SlurmJob(), job)


@dataclass
class Slurm:
    """Array jobs of Slurm, a run each. ``minutes`` is a job's limit; what is not done by then goes on in another."""

    folder: Path
    partition: str | None = None
    gpus: int = 0
    cpus: int = 1
    minutes: int = 60
    at_once: int = 64
    cluster: str = "slurm"
    poll_s: float = 5.0
    queue_s: float = 10.0  # between two looks at Slurm's queue

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, str | None]]:
        """As ``Executor.run``."""
        try:
            import submitit
        except ImportError:
            raise UserError("--executor slurm needs submitit: pip install 'ibnorm_hf[slurm]'") from None
        try:
            executor = submitit.AutoExecutor(folder=str(self.folder), cluster=self.cluster)
        except RuntimeError as error:
            raise UserError(f"no Slurm here: {' '.join(str(error).split())}") from None
        options = {"timeout_min": self.minutes, "cpus_per_task": self.cpus, "name": "ibnorm-hf"}
        if self.gpus:
            options["gpus_per_node"] = self.gpus
        executor.update_parameters(**options)
        if self.cluster == "slurm":
            slurm: dict[str, Any] = {"slurm_array_parallelism": self.at_once}
            if self.partition:
                slurm["slurm_partition"] = self.partition
            executor.update_parameters(**slurm)
        threaded = [Job(**{**asdict(job), "threads": self.cpus}) for job in jobs]
        submitted = executor.map_array(SlurmJob(), threaded)
        waiting = dict(zip(threaded_ids(submitted), zip(threaded, submitted, strict=True), strict=True))
        queue = _Queue(self.queue_s)
        while waiting:
            ended = [key for key, (_, handle) in waiting.items() if handle.done()]
            for key in ended:
                job, handle = waiting.pop(key)
                failure = handle.exception()
                yield job, None if failure is None else " ".join(str(failure).split())[-300:]
            for key in queue.lost(set(waiting)) if self.cluster == "slurm" else ():
                yield waiting.pop(key)[0], "its Slurm job ended without a result: killed, out of memory or node lost"
            if waiting:
                time.sleep(self.poll_s)


class _Queue:
    """Which jobs have left Slurm's queue. submitit asks its accounting alone, which not every Slurm has."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked, self.missing = seconds, time.monotonic(), set[str]()

    def lost(self, jobs: set[str]) -> set[str]:
        """Those of the jobs, none of which has a result, that were not queued twice in a row."""
        if time.monotonic() < self.asked + self.seconds:
            return set()
        self.asked = time.monotonic()
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
        try:
            queued = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
        except (OSError, subprocess.SubprocessError):
            return set()  # a controller that does not answer says nothing about a job
        before, self.missing = self.missing, jobs - set(queued)
        return before & self.missing


def threaded_ids(handles: list[Any]) -> list[str]:
    """A key for each submitted job."""
    return [str(handle.job_id) for handle in handles]
