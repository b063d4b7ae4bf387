# SPDX-License-Identifier: Apache-2.0
"""A run that ends before its last step, once its validation loss has stopped falling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """Counts the validations since the best one; kept in checkpoints, so that a resumed run stops at the same step.

    Args:
        patience: validations in a row without improvement after which the run ends.
        threshold: nats by which a loss must be below the best one to count as better.
    """

    patience: int
    threshold: float
    best: float = math.inf
    best_step: int = 0
    since: int = 0
    judged: int = -1  # the step that was judged last: a step is judged once

    def judge(self, step: int, loss: float) -> bool:
        """Take the validation loss (nats) of a step in; whether patience is at its end."""
        if step > self.judged:
            self.judged = step
            if loss < self.best - self.threshold:
                self.best, self.best_step, self.since = loss, step, 0
            else:
                self.since += 1
        return self.since >= self.patience

    def state(self) -> dict[str, Any]:
        """As plain values, for `load`; without a best loss there is nothing to keep."""
        return {"best": self.best, "best_step": self.best_step, "since": self.since, "judged": self.judged}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.best, self.best_step = float(state["best"]), int(state["best_step"])
        self.since, self.judged = int(state["since"]), int(state["judged"])

    def outcome(self, step: int) -> dict[str, Any]:
        """What the run's files say of an end at ``step``."""
        return {"step": step, "best_loss": self.best, "best_step": self.best_step, "patience": self.patience}


def early_stopping(run: Any) -> EarlyStopping | None:
    """As the keys of a run say; None where they do not ask for it."""
    if run.early_stopping_patience is None:
        return None
    return EarlyStopping(run.early_stopping_patience, run.early_stopping_threshold)
