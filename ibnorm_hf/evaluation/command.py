# SPDX-License-Identifier: Apache-2.0
"""``ibnorm-hf eval``: parses its own few words, hands the rest to the harness, calls what was asked."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ..common.errors import UserError
from ..common.online import hub_or_cache
from ..common.private_lm_eval import EVALUATING
from ..common.strict_json import read_object
from .offline import check_folder, go_offline, inside, leaderboard_leaves
from .remarks import told
from .target import Target, resolve

PERPLEXITY = "perplexity"
OWN = sorted(path.stem for path in (Path(__file__).parent / "own").glob("[a-z]*.py"))  # one file a task
_PATH_OPTIONS = ("--include_path", "--use_cache", "-c", "--config", "-C")


def parser() -> argparse.ArgumentParser:
    """The words that are ours; others are the harness's."""
    out = argparse.ArgumentParser(
        prog="ibnorm-hf eval",
        usage="%(prog)s RUN_OR_MODEL --tasks TASK[,TASK...] [options of `lm-eval run`]\n"
        "       %(prog)s --check --data DIR [--tasks TASK[,TASK...]]",
        description="Evaluate a run, a model folder, an adapter or a model of the Hub.",
        epilog="`perplexity` takes --block_size N and --against RESULT.json, that of another model on the same blocks. "
        "Every other option goes to the harness: --limit, --num_fewshot, --batch_size, --device, --gen_kwargs, "
        "--log_samples, --seed, --apply_chat_template, --include_path, ... (`lm-eval run --help` explains them). "
        "The same command goes on with an interrupted evaluation.",
        allow_abbrev=False,
    )
    out.add_argument(
        "--tasks",
        "-t",
        default="leaderboard",
        help="tasks or groups of the harness, and `perplexity`, of a run's validation blocks or of --text, "
        f"and, of a run's validation blocks, {', '.join(OWN)} (default: leaderboard)",
    )
    out.add_argument(
        "--data", type=Path, metavar="DIR", help="take data sets from the folders of DIR, named by Hub ids; no network"
    )
    out.add_argument("--check", action="store_true", help="check DIR and stop")
    out.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to measure `perplexity` of any model on")
    out.add_argument("--blocks", type=Path, metavar="DIR", help="where the run's packed blocks are now (perplexity)")
    out.add_argument("--output_path", "-o", type=Path, metavar="DIR", help="folder for results (default: RUN/eval)")
    return out


def main(words: Sequence[str]) -> int:
    """Run ``ibnorm-hf eval`` and return its exit code.

    Raises:
        UserError: for every mistake that can be put right, in one sentence.
    """
    given, rest = _parse(words)
    names = [name for name in given.tasks.split(",") if name]
    if given.data is not None:
        go_offline()
    if given.check:
        if given.data is None:
            raise UserError("eval --check needs --data DIR, the folder to check")
        print(check_folder(given.data, names))
        return 0
    target = resolve(given.target)
    output = (given.output_path or target.output).absolute()
    if given.text is not None and PERPLEXITY not in names:
        raise UserError("eval --text is what perplexity is measured on; add --tasks perplexity")
    if PERPLEXITY in names:
        from .perplexity import perplexity_command, summary

        names = [name for name in names if name != PERPLEXITY]
        result = perplexity_command(target, given.text, given.blocks, output, rest, alone=not names)
        if result is not None:
            print(summary(result))
    for name in [name for name in names if name in OWN]:
        task = import_module(f".own.{name}", __package__)
        names = [other for other in names if other != name]
        result = task.measure(target, given.blocks, output, rest, alone=not names)
        if result is not None:
            print(task.summary(result))
    if not names:
        return 0
    return _harness(target, names, given.data, output, rest)


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    # The model comes first: elsewhere it could not be told from the value of an option that is not ours.
    target = words[0] if words and not words[0].startswith("-") else None
    given, rest = parser().parse_known_args(list(words if target is None else words[1:]))
    given.target = target
    if target is None and not given.check:
        raise UserError("eval: name the model first: ibnorm-hf eval RUN_OR_MODEL --tasks ...")
    return given, rest


def _harness(target: Target, names: list[str], data: Path | None, output: Path, rest: list[str]) -> int:
    if data is not None and leaderboard_leaves(names):
        print(check_folder(data, names), file=sys.stderr)
    try:
        EVALUATING.require()
        from .options import configure
        from .runner import evaluate_tasks
    except ImportError as error:
        raise UserError(f"eval needs the harness ({error}); pip install 'ibnorm_hf[eval]'") from None
    config = configure(_absolute(rest), target, names, output)
    with inside(data), hub_or_cache():
        path = evaluate_tasks(config, target, names, output)
    if path is not None:
        _print_table(path)
        print(f"results {path}")
    return 0


def _print_table(path: Path) -> None:
    from lm_eval.utils import make_table

    results = read_object(path)
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    for name, excluded in results["ibnorm"]["excluded"].items():
        print(f"incomplete: {name}: {excluded['reason']}")
    for name in results["results"]:
        for phrase in told(results["ibnorm"], name):
            print(f"note: {name}: {phrase}")
    for option in ("limit", "gen_kwargs"):
        if (value := results["config"].get(option)) is not None:
            print(f"note: measured with --{option} {value}")


def _absolute(words: Sequence[str]) -> list[str]:
    """Paths among the harness's words, made independent of the current folder."""
    out: list[str] = []
    for word in words:
        is_path = bool(out) and out[-1] in _PATH_OPTIONS
        out.append(os.path.abspath(word) if is_path else word)
    return out
