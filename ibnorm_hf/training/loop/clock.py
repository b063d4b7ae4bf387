# SPDX-License-Identifier: Apache-2.0
"""The time of training: from step end to step end, without validation and saving, and how much of it was waiting."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TrainingClock:
    """Seconds by the wall from the first batch that was asked for, less those inside ``paused``."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._away = self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data; the first use starts the clock."""
        begun = time.perf_counter()
        if self._since is None:
            self._since = begun
        try:
            yield
        finally:
            self._waited += time.perf_counter() - begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._away += time.perf_counter() - begun

    def read(self) -> tuple[float, float]:
        """(seconds of training, share of them spent waiting for data) since the last call."""
        now = time.perf_counter()
        seconds = now - (now if self._since is None else self._since) - self._away
        share = min(1.0, self._waited / seconds) if seconds > 0 else 0.0
        self._since, self._away, self._waited = now, 0.0, 0.0
        return max(0.0, seconds), share


class Cost:
    """What a run has taken since step 0: seconds by the wall, and seconds of processor cores in this process.

    All that the process did counts, validation and saving too; the starts before this one as far as they were logged.
    """

    def __init__(self, seconds: float = 0.0, core_seconds: float = 0.0) -> None:
        self._before = seconds, core_seconds
        self._begun = time.perf_counter(), _core_seconds()

    @classmethod
    def after(cls, log: Path) -> Cost:
        """Going on from what the last line of a ``metrics.jsonl`` says; from nothing where there is none."""
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        told = [line for line in map(json.loads, lines) if "seconds" in line]
        return cls(told[-1]["seconds"], told[-1]["core_seconds"]) if told else cls()

    @property
    def of_this_command(self) -> float:
        """Seconds by the wall since this was made."""
        return time.perf_counter() - self._begun[0]

    @property
    def seconds(self) -> float:
        """Seconds by the wall since step 0."""
        return self._before[0] + self.of_this_command

    @property
    def core_seconds(self) -> float:
        """Seconds of cores since step 0: of this process's threads, and of its children that have ended."""
        return self._before[1] + _core_seconds() - self._begun[1]


def _core_seconds() -> float:
    return sum(os.times()[:4])


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
