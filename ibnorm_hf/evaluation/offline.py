# SPDX-License-Identifier: Apache-2.0
"""The leaderboard's data sets as local folders: what must be where, and a check that costs seconds.

``load_dataset("a/b")`` takes the folder ``a/b`` of the current folder when there is one, so the harness's own task
files, versions and hashes stay as they are.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from .bounds import BBH_CHOICES, BENCHMARKS, LEAVES

GATED = (
    "GPQA is gated: accept its terms on huggingface.co/datasets/Idavidrein/gpqa and download it once with your token, "
    "or name the other benchmarks in --tasks and score them with `ibnorm-hf leaderboard --partial`"
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a leaf's questions come from.

    Args:
        repo: Hub id, and the folder's name.
        config: named configuration, or None for the only one.
        splits: split: columns as {name: kind}; kinds are "text", "int", "list".
        flaw: what is wrong with a row beyond types, or None.
        questions: the split that is asked, and which of its rows are.
    """

    repo: str
    config: str | None
    splits: dict[str, dict[str, str]]
    flaw: Callable[[Row], str | None]
    questions: str
    asked: Callable[[Row], bool] = lambda row: True


def _fine(row: Row) -> None:
    return None


def _mmlu_flaw(row: Row) -> str | None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(row["options"])]
    return None if row["answer"] and row["answer"] in letters else f"answer {row['answer']!r} is not among the options"


def _musr_flaw(row: Row) -> str | None:
    try:
        choices = ast.literal_eval(row["choices"])
    except (ValueError, SyntaxError):
        return "choices is not a list written as text"
    found = isinstance(choices, list) and row["answer_choice"] in choices
    return None if found else f"answer_choice {row['answer_choice']!r} is not among the choices"


def _math_flaw(row: Row) -> str | None:
    return None if "\\boxed" in row["solution"] else "solution has no \\boxed{} answer"


def _ifeval_flaw(row: Row) -> str | None:
    same = len(row["kwargs"]) == len(row["instruction_id_list"])
    return None if same else "kwargs and instruction_id_list differ in length"


def _sources() -> dict[str, Source]:
    text = dict.fromkeys
    mmlu = {"question": "text", "options": "list", "answer": "text", "answer_index": "int", "category": "text"}
    gpqa = text(("Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))), "text")
    maths = text(("problem", "level", "type", "solution"), "text")
    musr = {**text(("narrative", "question", "choices", "answer_choice"), "text"), "answer_index": "int"}
    ifeval = {"key": "int", "prompt": "text", "instruction_id_list": "list", "kwargs": "list"}
    math_configs = {"counting_and_prob": "counting_and_probability", "num_theory": "number_theory"}
    out = {
        "leaderboard_mmlu_pro": Source(
            "TIGER-Lab/MMLU-Pro", None, {"test": mmlu, "validation": mmlu}, _mmlu_flaw, "test"
        ),
        "leaderboard_ifeval": Source(
            "wis-k/instruction-following-eval", None, {"train": ifeval}, _ifeval_flaw, "train"
        ),
    }
    for name in BBH_CHOICES:
        columns = {"input": "text", "target": "text"}
        out[f"leaderboard_bbh_{name}"] = Source("SaylorTwift/bbh", name, {"test": columns}, _fine, "test")
    for name in ("diamond", "extended", "main"):
        out[f"leaderboard_gpqa_{name}"] = Source("Idavidrein/gpqa", f"gpqa_{name}", {"train": gpqa}, _fine, "train")
    for name in (leaf.task for leaf in BENCHMARKS[2].leaves):
        short = name.removeprefix("leaderboard_math_").removesuffix("_hard")
        splits = {"train": maths, "test": maths}
        repo, config = "DigitalLearningGmbH/MATH-lighteval", math_configs.get(short, short)
        out[name] = Source(repo, config, splits, _math_flaw, "test", lambda row: row["level"] == "Level 5")
    for name in ("murder_mysteries", "object_placements", "team_allocation"):
        out[f"leaderboard_musr_{name}"] = Source("TAUR-Lab/MuSR", None, {name: musr}, _musr_flaw, name)
    return out


SOURCES = _sources()


def leaderboard_leaves(names: Sequence[str]) -> list[str]:
    """Leaf tasks of the leaderboard that ``names`` (leaves, groups, ``leaderboard``) cover."""
    groups = {b.group: [leaf.task for leaf in b.leaves] for b in BENCHMARKS}
    groups["leaderboard"] = list(LEAVES)
    found = [leaf for name in names for leaf in groups.get(name, [name] if name in LEAVES else [])]
    return list(dict.fromkeys(found))


def check_folder(folder: Path, names: Sequence[str]) -> str:
    """Check the data of the leaderboard tasks among ``names`` and return a table of what is there.

    Args:
        folder: holds a folder a data set, named by its Hub id (``TIGER-Lab/MMLU-Pro``, ...).
        names: tasks or groups.

    Raises:
        UserError: naming the first folder, configuration, split, column or row that is missing or wrong.
    """
    if not folder.is_dir():
        raise UserError(
            f"data folder {folder} does not exist; give the folder that holds TIGER-Lab/MMLU-Pro and others"
        )
    leaves = leaderboard_leaves(names)
    if not leaves:
        raise UserError(f"--check knows the leaderboard's tasks only, not {', '.join(names)}; leave it out")
    lines = [f"{'task':<56}{'questions':>10}{'full set':>10}"]
    with inside(folder):
        for leaf in leaves:
            count = _check_leaf(folder, leaf)
            lines.append(f"{leaf:<56}{count:>10}{LEAVES[leaf].documents:>10}")
    fewer = sum(int(line.split()[1]) != LEAVES[line.split()[0]].documents for line in lines[1:])
    verdict = f"{fewer} of {len(leaves)} have another size than the full set" if fewer else "all have their full size"
    return "\n".join([*lines, f"data for {len(leaves)} tasks can be read; {verdict}", *_sentence_line(leaves)])


def _sentence_line(leaves: Sequence[str]) -> list[str]:
    if "leaderboard_ifeval" not in leaves:
        return []
    try:
        from .ifeval import ADVICE, has_sentence_model

        if has_sentence_model():
            return []
    except ImportError:
        return ["NLTK is not installed, which IFEval needs: pip install 'ibnorm_hf[eval]'"]
    return [f"IFEval's sentence model is not here; questions that need it will be left out, and listed: {ADVICE}"]


def _check_leaf(folder: Path, leaf: str) -> int:
    """Number of questions that the leaf would ask."""
    source = SOURCES[leaf]
    place = folder / source.repo
    if not Path(source.repo).is_dir():
        gated = f"; {GATED}" if "gpqa" in leaf else "; download it there, or leave its tasks out"
        raise UserError(f"{leaf}: data set folder {place} is missing{gated}")
    try:
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()  # a bar a file says nothing
        data = load_dataset(source.repo, source.config)
    except Exception as error:
        cause = error.__cause__ or error
        # A cast error's own text is the whole schema; its details are the columns that some file lacks or adds.
        text = f"its files differ: {cause.details()}" if hasattr(cause, "details") else str(cause)
        reason = " ".join(text.split())[:200].rstrip(". ")
        what = f"configuration {source.config} of {place}" if source.config else str(place)
        raise UserError(
            f"{leaf}: {what} cannot be read ({reason}); its README.md must list configs, splits and files"
        ) from None
    asked = 0
    for split, columns in source.splits.items():
        if split not in data:
            raise UserError(f"{leaf}: {place} has no split {split} (it has {', '.join(data)}); add it to its README.md")
        asked_here = _check_rows(leaf, f"{place} split {split}", data[split], columns, source)
        asked = asked_here if split == source.questions else asked
    if asked == 0:
        raise UserError(f"{leaf}: {place} split {source.questions} has no question to ask; add rows")
    return asked


def _check_rows(leaf: str, place: str, rows: Any, columns: dict[str, str], source: Source) -> int:
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise UserError(
            f"{leaf}: {place} lacks the column {missing[0]} (it has {', '.join(rows.column_names)}); rename or add it"
        )
    kinds = {"text": str, "int": int, "list": list}
    asked = 0
    for number, row in enumerate(rows):
        for name, kind in columns.items():
            if not isinstance(row[name], kinds[kind]):
                found = type(row[name]).__name__
                raise UserError(f"{leaf}: {place} row {number}: {name} is {found}, it must be {kind}; correct the file")
        if source.asked(row):
            asked += 1
            if flaw := source.flaw(row):
                raise UserError(f"{leaf}: {place} row {number}: {flaw}; correct the file")
    return asked


def go_offline() -> None:
    """Make Hugging Face libraries fail at once instead of asking the network."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    # Whoever was imported already has read the variables.
    if "huggingface_hub" in sys.modules:
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        import datasets.config

        datasets.config.HF_HUB_OFFLINE = True


@contextmanager
def inside(folder: Path | None) -> Iterator[None]:
    """Work in ``folder`` for a while, with a cache of its own; None changes nothing.

    ``datasets`` keeps what it once read from ``a/b`` under that name, whichever folder it came from and whatever has
    changed in it since: so the cache is kept by the content of the files.
    """
    if folder is None:
        yield
        return
    import datasets.config

    before, cache = os.getcwd(), datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = Path(cache) / "local" / _content_sha256(folder)[:24]
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        datasets.config.HF_DATASETS_CACHE = cache


def _content_sha256(folder: Path) -> str:
    checksum = hashlib.sha256()
    for repo in sorted({source.repo for source in SOURCES.values()}):
        for path in sorted(p for p in (folder / repo).rglob("*") if p.is_file()):
            checksum.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode() + path.read_bytes())
    return checksum.hexdigest()
