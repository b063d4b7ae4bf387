# SPDX-License-Identifier: Apache-2.0
"""Read what the harness wrote, and refuse what does not mean what the leaderboard means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.strict_json import read_object
from .bounds import LEAVES, Leaf
from .remarks import remark_of, summary, table, told
from .scores import Measured, standard_error


@dataclass
class ModelResults:
    """The leaderboard leaves measured for one model.

    Args:
        name: for tables.
        leaves: raw rows by task name.
        hashes: digest of a task's questions and prompts, where the harness recorded it.
        model_sha256: digest of the weights that all of it was measured with; None where results do not say or differ.
        remarks: settings that make the numbers unofficial (``--limit``, ``--gen_kwargs``).
    """

    name: str
    leaves: dict[str, Measured] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    limit: Any = None
    model_sha256: str | None = None
    remarks: list[str] = field(default_factory=list)


def load_models(places: Sequence[str]) -> list[ModelResults]:
    """One model for each argument: a results file, a run folder, or a folder of results files.

    Raises:
        UserError: a file is damaged, foreign, of another task version or number of examples, or two files of a folder
            disagree.
    """
    models = [_load_model(Path(place).expanduser()) for place in places]
    seen: dict[str, int] = {}
    for model in models:
        seen[model.name] = seen.get(model.name, 0) + 1
        if seen[model.name] > 1:
            model.name += f" #{seen[model.name]}"
    return models


def _load_model(place: Path) -> ModelResults:
    if not place.exists():
        raise UserError(f"results {place} do not exist; give a results file of the harness or a run folder")
    if place.is_file():
        content = read_object(place)
        model = ModelResults(_display_name(content, place))
        _add(model, content, place)
        return model
    model = ModelResults(place.resolve().name)
    origin: dict[str, Path] = {}
    files = {path: read_object(path) for path in _files(place)}
    for path, content in files.items():
        if _superseded(content, path, files):
            model.remarks.append(f"{path.name}: passed over, left by an evaluation that did not end")
            continue
        before = set(model.leaves)
        limit = model.limit
        _add(model, content, path, lenient=True)
        new = [name for name in LEAVES if name in _results(content, path)]
        twice = [name for name in new if name in before]
        if twice:
            raise UserError(
                f"{origin[twice[0]]} and {path} both hold {twice[0]}, measured with other settings; name one of them"
            )
        if new and before and limit != model.limit:
            raise UserError(f"{place} mixes results with --limit {limit} and {model.limit}; name one of its files")
        origin.update(dict.fromkeys(new, path))
    if not model.leaves:
        raise UserError(f"{place} holds no leaderboard results (results_*.json); run `ibnorm-hf eval` first")
    return model


def _superseded(content: dict[str, Any], path: Path, files: dict[Path, dict[str, Any]]) -> bool:
    """Whether an evaluation broke off, and another one, which ended, measured a task of it with other settings."""
    if _ended(content):
        return False
    mine = set(LEAVES) & set(_results(content, path))
    others = [set(_results(other, at)) for at, other in files.items() if at != path and _ended(other)]
    return any(mine & theirs for theirs in others)


def _ended(content: dict[str, Any]) -> bool:
    """The means over groups are the last that `ibnorm-hf eval` writes; of other programs' files nothing is known."""
    return "groups" in content or not isinstance(content.get("ibnorm"), dict)


def _files(folder: Path) -> list[Path]:
    """Results files of a run's ``eval/``, of the folder itself, or of its only sub-folder that has some."""
    for place in (folder / "eval", folder):
        if found := sorted(place.glob("results*.json")):
            return found
    return sorted(folder.glob("*/results*.json"))


def _display_name(content: dict[str, Any], place: Path) -> str:
    name = content.get("model_name")
    if not isinstance(name, str) or not name:
        return place.stem
    path = Path(name)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _results(content: dict[str, Any], place: Path) -> dict[str, Any]:
    results = content.get("results")
    if not isinstance(results, dict):
        raise UserError(f"{place} is not a results file of the harness (no 'results'); give results_*.json")
    return results


def _add(model: ModelResults, content: dict[str, Any], place: Path, lenient: bool = False) -> None:
    results = _results(content, place)
    found = [task for task in LEAVES if task in results]
    if not found and not lenient:
        raise UserError(f"{place} holds no task of the leaderboard; run `ibnorm-hf eval RUN --tasks leaderboard`")
    weights = _weights(content)
    if found:
        model.model_sha256 = weights if not model.leaves or model.model_sha256 == weights else None
    for task in found:
        model.leaves[task] = _read_leaf(content, LEAVES[task], place)
        digest = table(content, "task_hashes").get(task)
        if isinstance(digest, str) and digest:
            model.hashes[task] = digest
    if not found:
        return
    config = table(content, "config")
    model.limit = config.get("limit")
    if model.limit is not None and (isinstance(model.limit, bool) or not isinstance(model.limit, int | float)):
        raise UserError(f"{place}: its limit is {model.limit!r}, no number; evaluate it again")
    if model.limit is not None:
        model.remarks.append(f"{place.name}: --limit {model.limit:g} asks a part of the questions only")
    elif short := [t for t in found if model.leaves[t].n < LEAVES[t].documents and not model.leaves[t].note]:
        first = short[0]
        model.remarks.append(
            f"{place.name}: {len(short)} tasks were asked on fewer questions than the leaderboard's, first {first}: "
            f"{model.leaves[first].n:,} of {LEAVES[first].documents:,}"
        )
    if config.get("gen_kwargs"):
        model.remarks.append(f"{place.name}: gen_kwargs {config['gen_kwargs']} are not the leaderboard's")
    cut = {task: "; ".join(told(table(content, "ibnorm"), task)) for task in found}
    model.remarks += [f"{place.name}: {line}" for line in summary(cut)]


def _weights(content: dict[str, Any]) -> str | None:
    """The digest of the evaluated model's files, as `ibnorm-hf eval` records it."""
    found = table(table(content, "ibnorm"), "settings").get("model_sha256")
    return found if isinstance(found, str) else None


def _read_leaf(content: dict[str, Any], leaf: Leaf, place: Path) -> Measured:
    _check_settings(content, leaf, place)
    row = content["results"][leaf.task]
    n = table(table(content, "n-samples"), leaf.task).get("effective")
    if not isinstance(row, dict) or not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UserError(f"{place}: {leaf.task} has no number of questions (n-samples); evaluate it again")
    if n > leaf.documents:
        raise UserError(f"{place}: {leaf.task} was asked {n:,} questions and has {leaf.documents:,}; evaluate it again")
    raws, errors = [], []
    for metric in leaf.metrics:
        raw = row.get(f"{metric},none")
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= 1:
            raise UserError(f"{place}: {leaf.task} has no {metric} between 0 and 1 (found {raw!r}); evaluate it again")
        reported = row.get(f"{metric}_stderr,none")
        reported = float(reported) if isinstance(reported, int | float) and math.isfinite(reported) else None
        raws.append(float(raw))
        errors.append(standard_error(float(raw), reported, n))
    # IFEval's two metrics are of the same answers: the mean of their errors bounds the error of their mean. The harness
    # reports none for the instruction level, where the number of prompts, not of instructions, is the cautious n.
    return Measured(
        leaf.task,
        raw=sum(raws) / len(raws),
        stderr=sum(errors) / len(errors),
        n=n,
        chance=leaf.chance,
        note=(note := _incomplete(content, leaf.task)),
        remark=remark_of(content, leaf, n, excluded=bool(note)),
    )


def _check_settings(content: dict[str, Any], leaf: Leaf, place: Path) -> None:
    version = table(content, "versions").get(leaf.task)
    try:
        same = version is not None and float(version) == leaf.version
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"{place}: {leaf.task} is version {version}, the leaderboard's is {leaf.version:g}; evaluate it with "
            "lm-eval 0.4.13"
        )
    shots = table(content, "n-shot").get(leaf.task)
    if shots != leaf.shots:
        raise UserError(
            f"{place}: {leaf.task} was asked with {shots} examples, the leaderboard gives {leaf.shots}; evaluate it "
            "without --num_fewshot"
        )


def _incomplete(content: dict[str, Any], task: str) -> str:
    entry = table(table(content, "ibnorm"), "excluded").get(task)
    return str(entry.get("reason", "questions were left out")) if isinstance(entry, dict) else ""
