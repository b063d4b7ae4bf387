# SPDX-License-Identifier: Apache-2.0
"""The recipe key ``norm_lambda_schedule``: how lambda falls while training. Plain arithmetic on steps; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ...common import strict_yaml
from ...common.errors import UserError, did_you_mean

FREE_OF_COMPRESSION = 1e8  # a lambda at which every variant is LayerNorm to fp32 rounding
_SHAPES = ("log", "linear", "cosine", "decelerating")
_UNITS = ("absolute", "spread")


@dataclass(frozen=True)
class LambdaSchedule:
    """The recipe key ``norm_lambda_schedule``, checked.

    Args:
        start: lambda of the first stage; ``auto`` searches for the smallest one whose loss, on training blocks, is at
            most ``max_loss`` nats a token above that of lambda 1e8.
        end: lambda of the last stage; None is the recipe's norm_lambda, or the variant's default.
        unit: ``absolute``, or ``spread``: start and end are multiples of each norm's own spread, the root mean square
            of x - mean(x) over training blocks before training, which gives every norm a lambda of its own. (In the
            standardize-first order it is measured after standardizing, and so about 1.)
        shape: how lambda falls between them: ``log`` by equal factors, ``linear`` by equal steps, ``cosine`` by
            factors that are small at both ends, ``decelerating`` by factors that shrink to 1 toward the end.
        warmup_share: share of the steps spent at ``start`` before lambda falls.
        anneal_share: share of the steps after which lambda has reached ``end``; the rest is trained there.
        stages: how many values lambda takes, both ends included. A compiled model is compiled once a stage.
        max_loss: bound of ``auto``, in nats a token.
    """

    start: float | str = "auto"
    end: float | None = None
    unit: str = "absolute"
    shape: str = "log"
    warmup_share: float = 0.05
    anneal_share: float = 0.75
    stages: int = 20
    max_loss: float = 0.05

    @classmethod
    def parse(cls, value: Any) -> LambdaSchedule:
        """From a mapping, or YAML or JSON of one.

        Raises:
            UserError: not a mapping, an unknown key, or a value outside its domain.
        """
        if isinstance(value, str):
            value = strict_yaml.loads(value, "key norm_lambda_schedule")
        if not isinstance(value, dict):
            raise UserError("key norm_lambda_schedule is a mapping, e.g. {start: auto, end: 4, stages: 20}")
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                hint = did_you_mean(key, known) or f"; the keys are {', '.join(known)}"
                raise UserError(f"unknown key 'norm_lambda_schedule.{key}'{hint}")
        schedule = cls(**{key: _number(item) for key, item in value.items()})
        for key, right, wanted in schedule._rules():
            if not right:
                raise UserError(f"key norm_lambda_schedule.{key} must be {wanted}, not {getattr(schedule, key)!r}")
        return schedule

    def _rules(self) -> list[tuple[str, bool, str]]:
        def number(value: Any, least: float = 0.0, most: float = 1.0) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

        def scale(value: Any) -> bool:
            return number(value, 0.0, FREE_OF_COMPRESSION) and value > 0

        domain = f"above 0 and at most {FREE_OF_COMPRESSION:g}"
        shares = number(self.warmup_share) and number(self.anneal_share)
        return [
            (
                "start",
                self.start == "auto" or scale(self.start),
                f"auto, or {domain}",
            ),
            ("end", self.end is None or scale(self.end), f"{domain}, or null"),
            ("unit", self.unit in _UNITS, " or ".join(_UNITS)),
            ("shape", self.shape in _SHAPES, ", ".join(_SHAPES)),
            ("warmup_share", number(self.warmup_share), "between 0 and 1"),
            ("anneal_share", number(self.anneal_share), "between 0 and 1"),
            ("anneal_share", shares and self.anneal_share >= self.warmup_share, "at least warmup_share"),
            (
                "stages",
                number(self.stages, 2, 1000) and int(self.stages) == self.stages,
                "a whole number, 2 to 1000",
            ),
            ("max_loss", number(self.max_loss, 0.0, 100.0) and self.max_loss > 0, "above 0"),
        ]

    def stage(self, step: int, max_steps: int) -> int:
        """Stage of optimizer step ``step`` (from 1): 0 through the warm-up, the last one from the arrival on.

        Between them all stages are equally long, 0 included, which so lasts a stage longer than the warm-up.
        """
        begin, end = round(self.warmup_share * max_steps), round(self.anneal_share * max_steps)
        if step <= begin:
            return 0
        if step >= end:
            return self.stages - 1
        return (step - begin) * (int(self.stages) - 1) // (end - begin)

    def between(self, start: float, end: float, stage: int) -> float:
        """Lambda of a stage on the way from ``start`` to ``end``, both reached exactly."""
        share = stage / (self.stages - 1)
        if share in (0.0, 1.0):
            return (start, end)[int(share)]
        if self.shape == "linear":
            return start + share * (end - start)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        if self.shape == "decelerating":
            share = 1 - (1 - share) ** 2
        return start * (end / start) ** share


def _number(value: Any) -> Any:
    """``1e5``, a string in YAML 1.1, as the number that it looks like."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
