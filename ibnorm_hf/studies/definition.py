# SPDX-License-Identifier: Apache-2.0
"""A study as its YAML file says it: arms, grid, seeds, budgets, margin. Every mistake is one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError, did_you_mean
from ..common.strict_json import read_text
from .units import UNITS, Unit

_KEYS = {
    "base": "the recipe that every run starts from, relative to the study's file",
    "baseline": "the arm that the others are held against",
    "margin": "differences below this, in the metric's unit, count as none",
    "metric": "loss (nats a token or image) or top1 (points of accuracy)",
    "arms": "name -> keys of the recipe, and `source`, the citation",
    "keys": "keys of the recipe that all arms share",
    "grid": "learning_rate and weight_decay, the same values for all arms; absent: an ablation at the base's rate",
    "tuning_seeds": "seeds that choose a point of the grid",
    "tuning_budgets": "budgets at which it is chosen; the others take the point of the next smaller one",
    "claim_seeds": "seeds that the verdict rests on, disjoint from those",
    "budgets": "multiples of the base's max_steps",
    "curve_budgets": "further budgets of the baseline alone, whose curve turns nats into steps",
    "extend": "whether to widen the grid, for all arms, while some best rate is its edge",
    "keep_models": "whether weights stay in the run folders",
}
_SCALED = ("max_steps", "warmup_steps", "eval_steps", "save_steps", "logging_steps")


@dataclass(frozen=True)
class Arm:
    """What sets one arm apart: keys of the recipe, and where the idea is from."""

    name: str
    keys: dict[str, Any]
    source: str


@dataclass(frozen=True)
class Definition:
    """A checked study. ``learning_rates`` and ``weight_decays`` are empty for an ablation; ``text`` is its file."""

    name: str
    text: str
    base: Path
    baseline: str
    margin: float
    unit: Unit
    arms: dict[str, Arm]
    keys: dict[str, Any]
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    tuning_seeds: tuple[int, ...]
    tuning_budgets: tuple[float, ...]
    claim_seeds: tuple[int, ...]
    budgets: tuple[float, ...]
    curve_budgets: tuple[float, ...]
    extend: bool
    keep_models: bool

    @property
    def tuned(self) -> bool:
        """Whether arms are tuned, each on the same grid; a declared ablation is not."""
        return bool(self.learning_rates)


def read_definition(path: str | Path) -> Definition:
    """Read and check a study.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing or wrong.
    """
    from ..training.keys.files import find_base, locate, read_yaml

    path = locate(path)
    content = read_yaml(path)
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key '{key}'{did_you_mean(key, _KEYS)}")
    reader = _Reader(path, content)
    arms = reader.arms()
    grid = reader.mapping("grid")
    if unknown := set(grid) - {"learning_rate", "weight_decay"}:
        raise reader.wrong("grid", f"knows learning_rate and weight_decay, not {min(unknown)}")
    budgets = reader.numbers("budgets", [1])
    metric = content.get("metric", "loss")
    if metric not in UNITS:
        raise reader.wrong("metric", f"must be one of {', '.join(UNITS)}")
    named = str(reader.needed("base"))
    base = (find_base(path.parent, named) or path.parent / named).resolve()
    found = Definition(
        name=path.stem,
        text=read_text(path),
        base=base,
        baseline=str(reader.needed("baseline")),
        margin=reader.number("margin"),
        unit=UNITS[metric],
        arms=arms,
        keys=reader.mapping("keys"),
        learning_rates=reader.numbers_of("grid", grid.get("learning_rate", [])),
        weight_decays=reader.numbers_of("grid", grid.get("weight_decay", []), zero=True),
        tuning_seeds=reader.seeds("tuning_seeds", []),
        tuning_budgets=reader.numbers("tuning_budgets", list(budgets)),
        claim_seeds=reader.seeds("claim_seeds", [1, 2, 3, 4, 5]),
        budgets=budgets,
        curve_budgets=reader.numbers("curve_budgets", []),
        extend=reader.flag("extend"),
        keep_models=reader.flag("keep_models"),
    )
    _check(found, reader)
    return found


def _check(study: Definition, reader: _Reader) -> None:
    rules = [
        ("base", study.base.is_file(), f"names {study.base}, which does not exist"),
        ("baseline", study.baseline in study.arms, f"must be one of the arms: {', '.join(study.arms)}"),
        ("arms", len(study.arms) > 1, "needs the baseline and at least one more"),
        ("margin", study.margin > 0, "must be above 0"),
        ("claim_seeds", len(study.claim_seeds) > 1, "needs at least two, and five for a ranking"),
        ("tuning_seeds", bool(study.tuning_seeds) == study.tuned, "and grid go together: give both or none"),
        (
            "tuning_seeds",
            not set(study.tuning_seeds) & set(study.claim_seeds),
            "and claim_seeds share a seed; a seed that chose the rate cannot be a witness",
        ),
        ("tuning_budgets", set(study.tuning_budgets) <= set(study.budgets), "must be among the budgets"),
        (
            "tuning_budgets",
            not study.tuned or min(study.tuning_budgets, default=0) == min(study.budgets),
            "must hold the smallest budget",
        ),
        ("curve_budgets", not set(study.curve_budgets) & set(study.budgets), "are other budgets than `budgets`"),
    ]
    for key, right, sentence in rules:
        if not right:
            raise reader.wrong(key, sentence)
    decided = {"seed", "output_dir", *(("learning_rate", "weight_decay") if study.tuned else ())}
    # All arms may be given another length together, none its own.
    for where, keys, more in (
        ("keys", study.keys, set()),
        *((f"arms, {arm.name},", arm.keys, {"max_steps"}) for arm in study.arms.values()),
    ):
        if both := sorted((decided | more) & set(keys)):
            raise reader.wrong(where, f"sets {both[0]}, which the study decides")


class _Reader:
    """Values of the file by key, with the sentence that says what is wrong."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    def wrong(self, key: str, sentence: str) -> UserError:
        return UserError(f"{self.path}: key {key} {sentence}")

    def needed(self, key: str) -> Any:
        if self.content.get(key) is None:
            raise UserError(f"{self.path}: key {key} is missing: {_KEYS[key]}")
        return self.content[key]

    def number(self, key: str) -> float:
        return self.numbers_of(key, [self.needed(key)], zero=True)[0]

    def numbers(self, key: str, default: list[Any]) -> tuple[float, ...]:
        return self.numbers_of(key, self.content.get(key, default))

    def numbers_of(self, key: str, values: Any, *, zero: bool = False) -> tuple[float, ...]:
        if not isinstance(values, list):
            raise self.wrong(key, "takes a list of numbers, e.g. [1, 3]")
        numbers = []
        for value in values:
            try:
                number = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
                raise self.wrong(key, f"holds {value!r}; give finite numbers above 0")
            numbers.append(number)
        if len(set(numbers)) != len(numbers):
            raise self.wrong(key, "holds a number twice")
        return tuple(sorted(numbers))

    def seeds(self, key: str, default: list[int]) -> tuple[int, ...]:
        values = self.content.get(key, default)
        if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
            raise self.wrong(key, "takes a list of whole numbers, e.g. [1, 2, 3, 4, 5]")
        if len(set(values)) != len(values):
            raise self.wrong(key, "holds a seed twice")
        return tuple(values)

    def flag(self, key: str) -> bool:
        value = self.content.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "is true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.content.get(key) or {}
        if not isinstance(value, dict):
            raise self.wrong(key, "is a mapping of names to values")
        return {str(k): v for k, v in value.items()}

    def arms(self) -> dict[str, Arm]:
        self.needed("arms")
        arms = {}
        for name, keys in self.mapping("arms").items():
            if not isinstance(keys, dict):
                raise self.wrong("arms", f"gives {name} no mapping of keys, e.g. {{norm_type: rmsnorm}}")
            keys = {str(k): v for k, v in keys.items()}
            arms[name] = Arm(name, keys, str(keys.pop("source", "")))
        return arms


def scaled(values: dict[str, Any], budget: float) -> dict[str, int]:
    """The lengths of a recipe, in steps, at another budget."""
    return {
        key: max(1, round(values[key] * budget))
        for key in _SCALED
        if isinstance(values.get(key), int | float) and values[key] > 0
    }
