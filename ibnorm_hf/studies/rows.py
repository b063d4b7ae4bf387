# SPDX-License-Identifier: Apache-2.0
"""One row a run: what a comparison knows of it, whether it was made here or elsewhere."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..common.errors import UserError, nearest, one_line

Phase = Literal["tuning", "claim", "curve"]

_NEEDED = ("arm", "learning_rate", "seed", "loss")
_OPTIONAL = ("budget", "weight_decay", "tokens", "parameters", "data_sha256", "seconds")
_MOST = 1e100  # a loss beyond is no number that could be averaged


@dataclass(frozen=True)
class Row:
    """A finished run. ``value`` is the loss (smaller is better), infinite where the run diverged.

    What is None was not told, and is compared with nothing. ``data_sha256`` stands for the samples and their order,
    ``evaluation_sha256`` for what was evaluated, ``decay_sha256`` for the parameters outside the norms that decay,
    ``parameters`` for those outside the norms where ``whole`` is False, else for all.
    """

    arm: str
    budget: float
    learning_rate: float
    weight_decay: float | None
    seed: int
    value: float
    phase: Phase = "claim"
    tokens: int | None = None
    parameters: int | None = None
    whole: bool = True
    data_sha256: str | None = None
    evaluation_sha256: str | None = None
    decay_sha256: str | None = None
    code_sha256: str | None = None
    seconds: float | None = None

    @property
    def rate(self) -> tuple[float, float | None]:
        """The point of the grid."""
        return self.learning_rate, self.weight_decay


def in_order(rows: list[Row]) -> list[Row]:
    """Rows sorted by their fields; what was not told comes first."""
    names = [f.name for f in fields(Row)]
    return sorted(
        rows, key=lambda row: [(v is not None, v) if (v := getattr(row, n)) is not None else (False, 0) for n in names]
    )


def read_table(path: str | Path) -> list[Row]:
    """Rows of a CSV file with the columns arm, learning_rate, seed, loss, and perhaps budget, weight_decay, tokens,
    parameters, data_sha256, seconds; other columns are left alone.

    In an arm and budget, a seed that occurs at several rates is a tuning seed; the others are claim seeds. A loss that
    is empty, nan, infinite or beyond 1e100 is a run that diverged.

    Raises:
        UserError: the file cannot be read, a column is missing, misspelt or there twice, a line has too few or too many
            cells, a cell is no number, a run is there twice.
    """
    path, known = Path(path), (*_NEEDED, *_OPTIONAL)
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"table {path} cannot be read: {error}") from None
    if missing := [name for name in _NEEDED if name not in names]:
        raise UserError(f"table {path} has no column {missing[0]}; it needs {', '.join(_NEEDED)}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"table {path} has the column {one_line(repr(name), 40)} twice; leave one")
        if name not in known and (near := nearest(name, known)) and near not in names:
            raise UserError(f"table {path}: unknown column {one_line(repr(name), 40)}; did you mean '{near}'?")
    rows: dict[tuple[Any, ...], Row] = {}
    for number, line in lines:
        if None in line or None in line.values():
            raise UserError(f"{path}, line {number}: it has not the {len(names)} cells that the first line names")
        row = _row(path, number, line)
        key = (row.arm, row.budget, row.rate, row.seed)
        if key in rows:
            raise UserError(
                f"{path}, line {number}: arm {one_line(row.arm, 60)} has seed {row.seed} at this rate and budget twice"
            )
        rows[key] = row
    if not rows:
        raise UserError(f"table {path} holds no runs")
    return with_phases(list(rows.values()))


def _row(path: Path, number: int, line: dict[str, Any]) -> Row:
    def cell(name: str, kind: Any) -> Any:
        text = (line.get(name) or "").strip()
        if not text:
            if name in _NEEDED and name != "loss":
                raise UserError(f"{path}, line {number}: column {name} is empty")
            return math.inf if name == "loss" else None
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            raise UserError(
                f"{path}, line {number}: column {name} holds {one_line(repr(text), 40)}, which is no number"
            ) from None
        return value

    rate, decay, budget = cell("learning_rate", float), cell("weight_decay", float), cell("budget", float)
    for name, value in (("learning_rate", rate), ("weight_decay", decay), ("budget", budget)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UserError(f"{path}, line {number}: column {name} holds {value}; give a finite number of at least 0")
    loss = cell("loss", float)
    return Row(
        arm=str(cell("arm", str)),
        budget=1.0 if budget is None else budget,
        learning_rate=rate,
        weight_decay=decay,
        seed=cell("seed", _whole),
        value=loss if abs(loss) < _MOST else math.inf,
        tokens=cell("tokens", _whole),
        parameters=cell("parameters", _whole),
        data_sha256=cell("data_sha256", str),
        seconds=cell("seconds", float),
    )


def _whole(text: str) -> int:
    value = float(text)
    if value != int(value):
        raise ValueError(text)
    return int(value)


def with_phases(rows: list[Row]) -> list[Row]:
    """Rows whose phase follows from the seeds: one that occurs at several rates of an arm and budget is for tuning."""
    rates: dict[tuple[str, float, int], set[Any]] = {}
    for row in rows:
        rates.setdefault((row.arm, row.budget, row.seed), set()).add(row.rate)
    done = []
    for row in rows:
        values = {f.name: getattr(row, f.name) for f in fields(Row)}
        values["phase"] = "tuning" if len(rates[row.arm, row.budget, row.seed]) > 1 else "claim"
        done.append(Row(**values))
    return done
