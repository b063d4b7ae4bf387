# SPDX-License-Identifier: Apache-2.0
"""The time of training: from step end to step end, without validation and saving, and how much of it was waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
