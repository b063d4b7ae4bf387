# SPDX-License-Identifier: Apache-2.0
"""What a study measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A metric: its key in eval/validation.json, its name and unit, and the factor from a value to what is shown.

    Values are costs, smaller being better: accuracy is kept as its negative, in points, and shown with the factor -1.
    """

    key: str = "loss"
    name: str = "loss"
    unit: str = "nats"
    factor: float = 1.0

    def value(self, measured: float) -> float:
        """The cost of what eval/validation.json says."""
        return measured if self.factor > 0 else -100 * measured


UNITS = {"loss": Unit(), "top1": Unit("top1", "accuracy", "points", -1.0)}
