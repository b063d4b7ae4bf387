# SPDX-License-Identifier: Apache-2.0
"""The words of `ibnorm-hf compare`. Nothing heavy is imported before they are understood."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("study", nargs="?", metavar="STUDY.yaml", help="e.g. recipes/studies/llama_tiny.yaml")
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the study, or of the report (default runs/studies/NAME)"
    )
    parser.add_argument(
        "--from", dest="archive", metavar="FILE", help="go on from the runs of a report's runs.tar.gz, made elsewhere"
    )
    parser.add_argument("--dry_run", action="store_true", help="print runs, steps, hours from a measured step, disk")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=0, help="local: runs at a time (default: fill the cores)")
    parser.add_argument("--threads", type=int, default=1, help="threads, or cores of a Slurm job (%(default)s)")
    parser.add_argument("--partition", help="slurm: its name")
    parser.add_argument("--gpus", type=int, default=0, help="slurm: a job's (%(default)s)")
    parser.add_argument("--minutes", type=int, default=60, help="slurm: a job's limit; it goes on in the next one")
    parser.add_argument("--at_once", type=int, default=64, help="slurm: jobs of the array at a time (%(default)s)")
    parser.add_argument("--table", metavar="CSV", help="judge runs made elsewhere: arm, learning_rate, seed, loss")
    parser.add_argument("--baseline", metavar="ARM", help="with --table: the arm that the others are held against")
    parser.add_argument("--margin", type=float, help="with --table: differences below this count as none")


def run(arguments: argparse.Namespace) -> int:
    """Run a study, or judge a table; 3 where a ranking is refused."""
    if (arguments.study is None) == (arguments.table is None):
        raise UserError("compare takes a study, or --table with runs made elsewhere")
    if arguments.table and arguments.archive:
        raise UserError("--from takes the runs of a study, and --table has its own; give one of the two")
    return _judge_table(arguments) if arguments.table else _run_study(arguments)


def _judge_table(arguments: argparse.Namespace) -> int:
    from . import table

    given = {"--baseline": arguments.baseline, "--margin": arguments.margin, "--out": arguments.out}
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(f"compare --table needs {missing[0]} beside it")
    judged = table.compare_table(
        arguments.table, baseline=arguments.baseline, margin=arguments.margin, out=arguments.out
    )
    print("\n".join(table.lines(judged)))
    print(f"report {arguments.out}/report.html")
    return table.REFUSED if judged["refused"] else 0


def _run_study(arguments: argparse.Namespace) -> int:
    from . import table
    from .compare import open_study
    from .executors import Local, Slurm

    executor: Local | Slurm = Local(arguments.processes, arguments.threads)
    if arguments.executor == "slurm":
        folder = Path(arguments.out or "runs/studies") / "slurm"
        executor = Slurm(
            folder,
            partition=arguments.partition,
            gpus=arguments.gpus,
            cpus=arguments.threads,
            minutes=arguments.minutes,
            at_once=arguments.at_once,
        )
    comparison = open_study(arguments.study, arguments.out, executor)
    if arguments.archive:
        comparison.take(Path(arguments.archive))
    if arguments.dry_run:
        print("\n".join(comparison.plan()))
        return 0
    judged = comparison.run()
    unit = comparison.study.unit
    print("\n".join(table.lines(judged, unit.unit, unit.factor)))
    print(f"report {comparison.folder / 'report' / 'report.html'}")
    return table.REFUSED if judged["refused"] else 0
