# SPDX-License-Identifier: Apache-2.0
"""The words of `ibnorm-hf analyze`. Nothing heavy is imported before they are understood."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..common.errors import UserError, did_you_mean
from .estimators import ESTIMATORS

_LEAST = {"samples": 16, "classes": 0, "seed": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="finished runs; those that differ by seed make an arm")
    parser.add_argument("--densities", action="store_true", help="draw figures 1, 3, 4 and 5 of the paper instead")
    parser.add_argument("--placebo", action="store_true", help="also each norm, untrained, on the same inputs")
    parser.add_argument("--estimators", nargs="+", metavar="NAME", help=f"some of: {' '.join(ESTIMATORS)} (all)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures and numbers")
    parser.add_argument("--samples", type=int, default=2048, help="held-out positions a run; default: %(default)s")
    text = "keep the most frequent labels, and one for the rest; 0: all (%(default)s)"
    parser.add_argument("--classes", type=int, default=64, help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the samples; default: %(default)s")


def run(arguments: argparse.Namespace, source: Callable[[], Any]) -> int:
    """Measure runs, or draw the densities, and print what came of it.

    Args:
        source: makes a ``runs.Source``; called only where runs are measured.
    """
    if bool(arguments.runs) == arguments.densities:
        raise UserError("analyze takes runs, or --densities")
    for name, least in _LEAST.items():
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} {getattr(arguments, name)}: name a whole number from {least} up")
    chosen = tuple(dict.fromkeys(arguments.estimators or ESTIMATORS))
    for name in chosen:
        if name not in ESTIMATORS:
            raise UserError(f"--estimators {name} is unknown{did_you_mean(name, ESTIMATORS)}; see analyze --help")
    try:
        if arguments.densities:
            from .densities import draw_densities

            lines = [str(file) for file in draw_densities(arguments.out, seed=arguments.seed)]
        else:
            from transformers.utils import logging

            from .analyze import analyze_runs
            from .measure import Options

            logging.disable_progress_bar()  # a bar for each model that is loaded
            numbers = {"samples": arguments.samples, "classes": arguments.classes, "seed": arguments.seed}
            options = Options(estimators=chosen, **numbers)
            lines = analyze_runs(arguments.runs, arguments.out, source(), options, placebo=arguments.placebo)
    except OSError as error:
        raise UserError(f"{arguments.out}: cannot write here ({error.strerror}); name another folder") from error
    print("\n".join(lines))
    return 0
