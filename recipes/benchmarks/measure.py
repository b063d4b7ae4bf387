# SPDX-License-Identifier: Apache-2.0
"""What both benchmarks share: interleaved timing, quantiles, and the machine that a number belongs to."""

import csv
import ctypes
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import stamp
import torch
import transformers

import ibnorm_hf


def clock() -> float:
    """Seconds: of work where one thread does all of it, which a busy machine moves little; else by the clock."""
    return (
        time.process_time() if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter()
    )


@functools.cache
def keep_pages() -> None:
    """Have glibc keep what is freed, once a process: else the first job after one that freed much pays for its pages.

    A kernel of 7 ms has measured 30 ms there. Elsewhere than under glibc nothing is changed.
    """
    if hasattr(ctypes.CDLL(None), "mallopt"):
        mallopt = ctypes.CDLL(None).mallopt
        never_mapped, never_trimmed = mallopt(-4, 0), mallopt(-1, 2**31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
        assert never_mapped and never_trimmed


def interleave(
    jobs: Mapping[str, Callable[[], None]], repeats: int, warmup: int, *, alternate: bool = False
) -> dict[str, list[float]]:
    """Seconds of each job in each round. Every round runs every job once, so drift of the machine hits all alike.

    With ``alternate`` every other round runs them backwards: what a job leaves in the caches shall not always meet the
    same next one. The jobs must not depend on each other then.
    """
    keep_pages()
    cuda = torch.cuda.is_available()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(warmup + repeats):
        for name, job in list(jobs.items())[:: -1 if alternate and i % 2 else 1]:
            if cuda:
                torch.cuda.synchronize()
            start = clock()
            job()
            if cuda:
                torch.cuda.synchronize()
            if i >= warmup:
                times[name].append(clock() - start)
    return times


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20 %, 50 % and 80 % quantiles."""
    q = torch.quantile(torch.tensor(values, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return tuple(q.tolist())


def ratio(times: Mapping[str, Sequence[float]], name: str, base: str) -> tuple[float, float, float]:
    """Quantiles of the round-by-round ratio of two jobs."""
    return quantiles([a / b for a, b in zip(times[name], times[base], strict=True)])


def machine() -> dict[str, str]:
    """Hardware and versions, one CSV column each."""
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{stamp.processor()}, {os.cpu_count()} cores"
    )
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "ibnorm_hf": ibnorm_hf.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the rows with the machine's columns appended, and a stamp beside them; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**row, **machine()} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    stamp.write_beside(path)
