# SPDX-License-Identifier: Apache-2.0
"""`ibnorm-hf`: one sub-command a job. Parses, calls one function, prints.

Nothing heavy is imported here: `ibnorm-hf --help` must answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from . import __version__

if TYPE_CHECKING:
    from .training.job import Result
    from .training.keys.recipe import Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code: 0 done, 1 failed on the way, 2 asked wrongly, 130 Ctrl-C."""
    from .common.errors import UserError
    from .common.last_word import complain
    from .training.keys.command import completed

    try:
        try:
            arguments = completed(_parser()).parse_args(argv)
            code = int(arguments.job(arguments))
        except UserError as error:
            complain(f"error: {error}")
            code = error.exit_code
        except KeyboardInterrupt:
            complain("interrupted")
            code = 130
        finally:  # --help and --version leave by an exit
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # `ibnorm-hf ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13


def _parser() -> argparse.ArgumentParser:
    from .common.last_word import Parser
    from .training.keys.command import add_recipe, add_recipe_jobs

    parser: argparse.ArgumentParser = Parser(
        prog="ibnorm-hf", description="IBNorm in Hugging Face models: train, measure, publish.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ibnorm_hf {__version__}")
    jobs = parser.add_subparsers(required=True, metavar="JOB", title="jobs")

    for name, job, text in (
        ("pretrain", pretrain, "train a recipe; any key can be overridden: --key value, --model.key value"),
        ("finetune", finetune, "the same, from the recipe's `pretrained` weights: whole, norms alone, or an adapter"),
        ("prepare", prepare, "make the packed data of a recipe and stop; later runs reuse it"),
    ):
        # Keys belong to the recipe, not to argparse: everything after the file is passed on untouched.
        job_parser = jobs.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_recipe(job_parser)
        job_parser.add_argument("keys", nargs=argparse.REMAINDER, help="--key value ... (see recipes/README.md)")
        job_parser.set_defaults(job=job)

    _add_hub_jobs(jobs)
    _add_convert_job(jobs)
    _add_evaluation_jobs(jobs)
    _add_compare_job(jobs)
    _add_analyze_job(jobs)
    norms = jobs.add_parser("norms", help="list the normalizations that norm_type accepts, or the hosts they stand in")
    norms.add_argument("--hosts", action="store_true", help="list the model types, their classes, norm and eps")
    norms.add_argument("--format", choices=("table", "markdown"), default="table", help="default: %(default)s")
    norms.set_defaults(job=list_norms)
    add_recipe_jobs(jobs)
    return parser


def pretrain(arguments: argparse.Namespace) -> int:
    """Train a recipe, draw its loss curve, print the outcome."""
    from .training.keys.launch import launch_over_devices
    from .training.keys.recipe import load_recipe

    code = launch_over_devices("pretrain", arguments.recipe, arguments.keys)
    return _train(load_recipe(arguments.recipe, arguments.keys)) if code is None else code


def finetune(arguments: argparse.Namespace) -> int:
    """Train a recipe that starts from pretrained weights."""
    from .common.errors import UserError
    from .training.keys.launch import launch_over_devices
    from .training.keys.recipe import load_recipe

    code = launch_over_devices("finetune", arguments.recipe, arguments.keys)
    if code is not None:
        return code
    recipe = load_recipe(arguments.recipe, arguments.keys)
    if recipe.model.pretrained is None:
        raise UserError(f"{arguments.recipe}: key pretrained is missing: the folder, Hub name or GGUF to start from")
    return _train(recipe)


def _train(recipe: Recipe) -> int:
    from .common.last_word import complain
    from .training import job

    if recipe.repo_id and recipe.run.process_index == 0:
        from .hub.push import require_access

        require_access(recipe.repo_id, online=not recipe.run.dry_run)
    if recipe.run.dry_run:
        if recipe.run.process_index == 0:
            job.print_plan(recipe)
        return 0
    result = job.pretrain(recipe)
    if result.stopped_by is not None:
        complain(f"stopped: a checkpoint is in {result.folder}; the same command goes on from it")
        return 128 + result.stopped_by
    if recipe.run.process_index == 0:
        _tell(recipe, result)
    return 0


def _tell(recipe: Recipe, result: Result) -> None:
    """Print the outcome of a run, with its pictures."""
    from .analysis.loss_curve import plot_loss_curve
    from .common.errors import printable
    from .training.loop.likeness import norm_lines

    if "perplexity" in result.validation:
        scores = result.validation
        perplexity = f"{scores['perplexity']:.2f}" if scores["perplexity"] is not None else "beyond 1e304"
        bits = scores["bits_per_byte"]
        print(f"validation loss {scores['loss']:.4f}  perplexity {perplexity}  bits per byte {bits:.3f}")
        if result.per_s:
            print(f"speed {result.per_s:,.0f} tokens/s")
        print(f"sample: {printable(result.sample)}")
    else:
        from .evaluation.robustness_chart import judge_classifier

        batch, task = recipe.run.per_device_eval_batch_size, cast(Any, result.task)
        images, prepare = task.data.validation, task.views.evaluate
        for line in judge_classifier(result.folder, result.model, images, prepare, batch_size=batch):
            print(line)
    try:
        plot = str(plot_loss_curve(result.folder, anew=not result.found))
    except ValueError as error:  # logging_steps beyond max_steps
        plot = f"not drawn: {error}"
    for line in norm_lines(result.folder):
        print(line)
    print(f"loss curve {plot}")
    print(f"run {result.folder}")
    if recipe.repo_id:
        from .hub.push import push as push_run

        push_run(result.folder, recipe.repo_id, private=recipe.run.hub_private_repo)


def prepare(arguments: argparse.Namespace) -> int:
    """Prepare the data of a recipe."""
    from .training.job import prepare as prepare_recipe
    from .training.keys.recipe import load_recipe

    # Text is prepared without an accelerator, however many there are.
    data = prepare_recipe(load_recipe(arguments.recipe, [*arguments.keys, "--use_cpu", "true"]))
    print(f"{len(data.train):,} training and {len(data.validation):,} validation blocks in {data.folder}")
    return 0


def _add_hub_jobs(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "write a folder that loads anywhere, with ibnorm_hf or without it"
    parser = jobs.add_parser(
        "export",
        help=text,
        description=text,
        allow_abbrev=False,
        usage="ibnorm-hf export RUN_OR_MODEL DIR [--max_shard_size SIZE] | ibnorm-hf export --verify DIR",
    )
    parser.add_argument("source", nargs="?", metavar="RUN_OR_MODEL", help="run, model or adapter folder, or an export")
    parser.add_argument("target", nargs="?", metavar="DIR", help="new folder")
    parser.add_argument(
        "--max_shard_size", default="5GB", help="split weights into files of at most this (%(default)s)"
    )
    parser.add_argument("--verify", metavar="DIR", help="check sizes, checksums and code of an export instead")
    parser.set_defaults(job=export)

    text = "write the model card of a run from its files"
    parser = jobs.add_parser("card", help=text, description=text, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="run folder; the card goes beside its weights")
    parser.add_argument("--output", metavar="DIR", help="write card, picture and eval results there instead")
    parser.add_argument("--force", action="store_true", help="replace a card of somebody else; it is kept as *.before")
    parser.add_argument(
        "--study",
        metavar="DIR",
        help="folder or report.json of the run's study (default: the one that it stands in)",
    )
    parser.set_defaults(job=card)

    text = "publish a run on the Hub in one commit: model, tokenizer, card, code, eval results"
    parser = jobs.add_parser("push", help=text, description=text, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="run folder, or a model folder")
    parser.add_argument("--repo_id", required=True, help="name or owner/name; created if absent")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", default=None, help="a private repository (default)")
    visibility.add_argument("--public", dest="private", action="store_false", help="a public repository")
    parser.add_argument("--dry_run", action="store_true", help="list what would be uploaded; no token, no network")
    parser.add_argument("--license", metavar="ID", help="the licence you give it; without one, none is claimed")
    parser.set_defaults(job=push)


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{word}' is neither true nor false")
    return word.lower() == "true"


_CONVERT_FLAGS: dict[str, dict[str, Any]] = {
    "norm_lambda": {
        "type": float,
        "nargs": "+",
        "metavar": "NUMBER",
        "help": "one number, or one a norm; 1e5 is LayerNorm to four digits",
    },
    "norm_order": {"metavar": "ORDER", "help": "compress-first, the default, or standardize-first"},
    "norm_affine": {"type": _truth, "metavar": "TRUTH", "help": "false: no weight"},
    "norm_bias": {"type": _truth, "metavar": "TRUTH", "help": "a bias or none; default: as the architecture"},
    "norm_lambda_learned": {"type": _truth, "metavar": "TRUTH", "help": "true: learn lambda, one a norm"},
    "norm_depth_scale": {"metavar": "SCALE", "help": "sqrt: divide by the root of the layer"},
    "norm_scope": {"nargs": "+", "metavar": "SITE", "help": "all, or some of final, pre-attention, pre-mlp"},
    "norm_exclude": {"nargs": "+", "metavar": "NAME", "help": "norms to leave alone: names, or patterns"},
}


def _add_convert_job(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "give a pretrained model other norms; says what changed and measures what it cost"
    parser = jobs.add_parser("convert", help=text, description=text, allow_abbrev=False)
    parser.add_argument("source", metavar="MODEL_OR_ID", help="model folder, Hub id, or GGUF file")
    parser.add_argument("target", metavar="DIR", help="new folder")
    parser.add_argument("--norm_type", required=True, help="see `ibnorm-hf norms`")
    for flag, options in _CONVERT_FLAGS.items():
        parser.add_argument(f"--{flag}", **options)
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text to measure the NLL on, before and after")
    parser.add_argument("--max_tokens", type=int, default=2048, help="tokens of the text to score (%(default)s)")
    parser.set_defaults(job=convert)


def convert(arguments: argparse.Namespace) -> int:
    """Swap the norms of a pretrained model, print the report and the measurement."""
    from .common.errors import UserError
    from .hub.convert import convert as convert_model

    flags = {flag: getattr(arguments, flag) for flag in _CONVERT_FLAGS}
    for flag, value in flags.items():
        if isinstance(value, list) and len(value) == 1 and flag != "norm_exclude":
            flags[flag] = value[0]
    done = convert_model(
        arguments.source,
        arguments.target,
        norm_type=arguments.norm_type,
        text=arguments.text,
        max_tokens=arguments.max_tokens,
        **flags,
    )
    print("\n".join(done.lines()))
    if done.saved_as is None:
        raise UserError(
            f"{arguments.source} has no registered type, so a saved copy would load with its old norms and "
            f"{arguments.target} was not written; use ibnorm_hf.replace_norms in your own code"
        )
    print(f"saved {arguments.target} as {done.saved_as}")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Export a run or model, or verify an export."""
    from .common.errors import UserError
    from .hub import export as exports

    if arguments.verify is not None:
        if arguments.source is not None:
            raise UserError("export --verify takes one folder; it writes nothing")
        for line in exports.verify(arguments.verify):
            print(line)
        return 0
    if arguments.target is None:
        raise UserError("export needs two folders: ibnorm-hf export RUN_OR_MODEL DIR")
    target = exports.export(arguments.source, arguments.target, max_shard_size=arguments.max_shard_size)
    for line in exports.verify(target):
        print(line)
    print(f"exported to {target}")
    return 0


def card(arguments: argparse.Namespace) -> int:
    """Write a run's card."""
    from pathlib import Path

    from .hub.card import write_card

    target = Path(arguments.output) if arguments.output else None
    study = Path(arguments.study) if arguments.study else None
    print(write_card(arguments.run, target=target, force=arguments.force, study=study))
    return 0


def push(arguments: argparse.Namespace) -> int:
    """Upload a run."""
    from .hub.push import push as upload

    words = {"private": arguments.private, "dry_run": arguments.dry_run, "license": arguments.license}
    upload(arguments.run, arguments.repo_id, **words)
    return 0


def list_norms(arguments: argparse.Namespace) -> int:
    """Print the table of normalizations, or of hosts."""
    from .hub.norm_facts import host_table, norm_table

    print("\n".join((host_table if arguments.hosts else norm_table)(arguments.format)))
    return 0


def _add_evaluation_jobs(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    # No word of `eval` is an option to argparse here: most of them are the harness's.
    evaluation = jobs.add_parser(
        "eval", help="evaluate a run or model by lm-evaluation-harness", prefix_chars="\0", add_help=False
    )
    evaluation.add_argument("words", nargs="*")
    evaluation.set_defaults(job=evaluate)

    text = "Open LLM Leaderboard II scores from results of `eval`, with chance levels and standard errors"
    parser = jobs.add_parser("leaderboard", help=text, description=text, allow_abbrev=False)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a run folder or results_*.json for each model")
    styles = ("table", "json", "markdown", "csv")
    parser.add_argument("--format", choices=styles, default="table", help="default: %(default)s")
    parser.add_argument("--partial", action="store_true", help="accept missing tasks; they are named, nothing averaged")
    parser.add_argument("--chart", metavar="FILE.png", help="draw a bar chart, too")
    parser.set_defaults(job=leaderboard)


def _add_compare_job(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .studies.command import add_arguments

    text = "a fair comparison of norms over seeds, with a verdict for each; code 3 where a ranking would not be fair"
    parser = jobs.add_parser("compare", help=text, description=text, allow_abbrev=False)
    add_arguments(parser)
    parser.set_defaults(job=compare)


def compare(arguments: argparse.Namespace) -> int:
    """Run a study, or judge a table."""
    from .studies.command import run

    return run(arguments)


def _add_analyze_job(jobs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .analysis.command import add_arguments

    text = "measure information by layer, beside its placebo; or draw what the compressions do to a distribution"
    parser = jobs.add_parser("analyze", help=text, description=text, allow_abbrev=False)
    add_arguments(parser)
    parser.set_defaults(job=analyze)


def analyze(arguments: argparse.Namespace) -> int:
    """Measure runs, or draw the densities."""
    from .analysis.command import run

    def source() -> Any:
        from .analysis.runs import Source
        from .training.reopen import held_out_images, initial_model

        return Source(initial_model, held_out_images)

    return run(arguments, source)


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a run or model."""
    from .evaluation.command import main as run

    return run(arguments.words)


def leaderboard(arguments: argparse.Namespace) -> int:
    """Print leaderboard scores."""
    from pathlib import Path

    from .evaluation.leaderboard import leaderboard as scores

    chart = Path(arguments.chart) if arguments.chart else None
    print(scores(arguments.results, style=arguments.format, partial=arguments.partial, chart=chart))
    return 0


if __name__ == "__main__":
    sys.exit(main())
