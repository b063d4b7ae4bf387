# SPDX-License-Identifier: Apache-2.0
"""What a run's files say, and nothing else: a number without a file does not exist here."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..common.base import base_of, require_same_base
from ..common.errors import UserError, one_line
from ..common.listing import require_regular
from ..common.run import (
    LOSS_CURVE,
    Metric,
    Run,
    fingerprint,
    is_adapter,
    is_run,
    model_config,
    model_folder,
    require_safetensors,
)
from ..common.study import Found, study_of
from .licence import Terms, terms_of
from .scrub import scrub


@dataclass(frozen=True)
class Facts:
    """The files of a run as plain values; empty where a file is absent. Local paths are cut already.

    ``base`` names the model that this one was trained from, or whose adapter was merged into it.
    """

    name: str
    model: Path
    config: dict[str, Any]
    parameters: int
    base: str | None = None
    terms: Terms = field(default_factory=Terms)
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    leaderboard: dict[str, Any] = field(default_factory=dict)
    unscored: bool = False
    unit: str = "token"
    robustness: dict[str, Any] = field(default_factory=dict)
    norms: dict[str, Any] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    sample: str = ""
    loss_curve: Path | None = None
    study: Found | None = None


def read_facts(
    source: str | Path, merged: Path | None = None, license: str | None = None, study: Path | None = None
) -> Facts:
    """Read a run folder; a model folder alone gives a name, a config and a parameter count.

    Of a run, all that recipes/RUN_FOLDER.md describes but checkpoints; of ``eval/leaderboard.json`` the entry of these
    very weights; and beside the run the report of its study.

    Args:
        source: the run or model folder.
        merged: the export of a source that holds an adapter.
        license: what the owner names, where no base says otherwise.
        study: the study (folder or report.json) that made the run, where it does not stand in its folder.

    Raises:
        UserError: there is no finished model, a file that is there cannot be read, or the named study is another's.
    """
    source, model = Path(source), require_same_base(model_folder(source))
    terms = terms_of(source, license)
    trained = model
    if is_adapter(model):
        if merged is None or not (merged / "config.json").is_file():
            raise UserError(
                f"{source} holds a PEFT adapter, and a card describes a whole model: export it, and give that folder "
                "as --output"
            )
        model = merged
    require_safetensors(model)
    facts: dict[str, Any] = {
        "name": source.resolve().name,
        "model": model,
        "config": model_config(model),
        "parameters": _count_parameters(model),
        "base": scrub(terms.base),
        "terms": terms,
    }
    if not is_run(source):
        if study is not None:
            raise UserError(f"{source} is no run folder, so no study holds it; give the run")
        return Facts(**facts)
    run = Run(source)
    leaderboard = _own_scores(scrub(run.results("leaderboard")), source / "eval" / "leaderboard.json", trained)
    recipe = {key: scrub(value) for key, value in run.config.items() if value is not None and key != "output_dir"}
    picture = source / LOSS_CURVE
    return Facts(
        **facts,
        recipe=recipe,
        environment=scrub(run.environment),
        data=scrub(run.data),
        validation=scrub(run.validation),
        leaderboard=leaderboard,
        unit="image" if "images" in run.config else "token",
        robustness=scrub(run.results("robustness")),
        norms=scrub(run.results("norms")),
        unscored=not leaderboard and any((source / "eval").glob("**/results_*.json")),
        metrics=run.metrics,
        sample=scrub(run.sample),
        loss_curve=require_regular(picture, source) if os.path.lexists(picture) else None,
        study=scrub(study_of(source, trained, study)),
    )


# Of a norm over the batch: kept beside the weights, and no parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _count_parameters(model: Path) -> int:
    total = 0
    for path in model.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as weights:
                names = [name for name in weights.keys() if not name.endswith(_STATISTICS)]  # noqa: SIM118
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
        except Exception as error:
            raise UserError(f"{path} is damaged: {one_line(error)}", exit_code=1) from None
    return total


def _own_scores(content: dict[str, Any], path: Path, model: Path) -> dict[str, Any]:
    """The entry whose recorded weights are those of ``model``; empty where none is, whatever its name says."""
    if not content:
        return {}
    try:
        entries = [entry for entry in content["models"] if entry.get("model_sha256")]
        mine = fingerprint(_measured_places(model)) if entries else ""
        found = next((entry for entry in entries if entry["model_sha256"] == mine), None)
        if found is None:
            return {}
        _check_rows(found, path)
        ", ".join([*(found.get("missing") or []), *(found.get("remarks") or [])])
        for row in found["rows"]:
            "".join([row["level"], row["name"], *(row.get(key) or "" for key in ("mark", "note", "remark"))])
            sum([row["raw"], row["stderr"], row["score"], row["chance"]]) + row["n"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not what `ibnorm-hf leaderboard RUN` writes; make it again") from None
    return dict(found)


def _measured_places(model: Path) -> list[str | Path]:
    """What an evaluation of the model loads: an adapter's base, the adapter, and its tokenizer where it has one."""
    if not is_adapter(model):
        return [model]
    own = any((model / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    return [base_of(model).name, model, *([model] if own else [])]


def _check_rows(content: dict[str, Any], path: Path) -> None:
    rows = content.get("rows") if content else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is not what it should be: its 'rows' are no list of objects")
