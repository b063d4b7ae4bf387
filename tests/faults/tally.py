# SPDX-License-Identifier: Apache-2.0
"""What a round of kills tried, and what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Kills of runs or studies; ``where`` counts them by what was killed, or at which call."""

    tried: int = 0
    lost: int = 0
    series: int = 0  # runs or studies, each killed several times before it ended
    in_a_row: int = 0
    where: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def ended(self, kills: int, wrong: str) -> None:
        """Count a series of kills; all are lost where something is wrong with what it ended in."""
        self.tried += kills
        self.in_a_row = max(self.in_a_row, kills)
        if wrong:
            self.lost += kills
            self.complaints.append(wrong)

    def as_dict(self, series: str) -> dict[str, Any]:
        """For a result file; ``series`` is the word for what was killed: runs or studies."""
        content = {**vars(self), "where": dict(sorted(self.where.items())), "survived": self.tried - self.lost}
        return {series if key == "series" else key: value for key, value in content.items()}
