# SPDX-License-Identifier: Apache-2.0
"""The one job: a recipe, of text or of images, becomes a run folder."""

from __future__ import annotations

import os
import tempfile
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as hf_logging

from ..common import strict_yaml
from ..common.errors import UserError
from ..common.paths import sync_folder, write_json
from ..common.private_transformers import TRAINING
from ..common.run import METRICS, Run, mean_speed
from .early import try_trainer_parts
from .folder.failures import told
from .folder.manifest import STOPPED_EARLY, ends_run, seal
from .folder.resume import checkpoint_to_resume, require_same_data
from .folder.run_folder import claim, write_environment
from .folder.state import finished_end, set_aside
from .folder.together import agreed, forget, on_this_machine
from .image_task import ImageTask
from .keys.arguments import DataArguments
from .keys.identity import identity, run_id
from .keys.image_arguments import ImageArguments
from .keys.launch import strategy
from .keys.recipe import Recipe, resolved
from .loop.callbacks import RunLog, StopOnSignal
from .loop.likeness import ROWS, distance_to_layernorm, likeness
from .loop.shapes import LayerShapes
from .loop.telemetry import CompressionShares
from .loop.trainer import PretrainTrainer
from .text_task import TextTask, prepare

__all__ = ["Result", "prepare", "pretrain", "print_plan", "task_of", "train_to_the_end"]


@dataclass(frozen=True)
class Result:
    """End of a run: numbers as in eval/validation.json, or the signal that stopped it early.

    ``per_s`` is its mean speed in tokens or images, ``task`` and ``model`` what is needed to judge the model further;
    ``model`` is None for a run that was ``found`` finished.
    """

    folder: Path
    validation: dict[str, Any]
    per_s: float | None
    sample: str
    stopped_by: int | None = None
    task: TextTask | ImageTask | None = None
    model: Any = None
    found: bool = False


def task_of(recipe: Recipe) -> TextTask | ImageTask:
    """What a recipe is about."""
    data: Any = recipe.data
    return ImageTask(recipe) if isinstance(data, ImageArguments) else TextTask(recipe)


def print_plan(recipe: Recipe) -> None:
    """The `--dry_run` of a recipe, and the recipe as config.yaml would hold it: no data, no weights, no file."""
    TRAINING.require()
    for line in task_of(recipe).plan(dry=True):
        print(line)
    try_trainer_parts(recipe)
    print(f"recipe:\n{strict_yaml.dumps(resolved(recipe))}", end="")


def pretrain(recipe: Recipe) -> Result:
    """Train a recipe to its last step, resuming what is there, and complete its run folder.

    A folder that holds the finished run is left as it is, and its results are returned.

    Args:
        recipe: as ``load_recipe`` reads it; its ``output_dir`` is the run folder.

    Returns:
        The folder, the scores on the held-out data (``validation["loss"]`` in nats a predicted token, of images a
        picture), a sample of text, and the trained model in memory. After Ctrl-C or SIGTERM ``stopped_by`` says so, and
        the same call goes on.

    Raises:
        UserError: for every mistake that can be put right, in one sentence.
    """
    folder, main = Path(str(recipe.run.output_dir)), recipe.run.process_index == 0
    say = print if main else _silent
    TRAINING.require()
    _quiet_libraries()
    task = task_of(recipe)
    space = "checkpoints before it are unharmed; free some room, and the same command goes on from the newest"
    with told(folder=folder, space=space, memory=task.memory), ExitStack() as held:
        end = agreed(lambda: finished_end(recipe, folder), main_only=True)
        if end is not None:
            return _found(recipe, task, end, say)
        for line in agreed(lambda: task.plan(dry=False)):
            say(line)
        agreed(lambda: try_trainer_parts(recipe))
        agreed(lambda: held.enter_context(claim(recipe)), main_only=True)
        return _run(recipe, task, folder, say)


def _run(recipe: Recipe, task: TextTask | ImageTask, folder: Path, say: Any) -> Result:
    run = recipe.run
    checkpoint = agreed(lambda: checkpoint_to_resume(recipe, folder, say), main_only=True)
    if checkpoint is not None and not ends_run(checkpoint[1], run.max_steps):
        agreed(lambda: set_aside(folder, say), main_only=True)
    task.recorded = checkpoint[1].get("fingerprints") if checkpoint else None
    description = agreed(lambda: task.description)
    marks = agreed(lambda: description["fingerprints"], main_only=True)
    agreed(lambda: require_same_data(checkpoint, marks, description["fingerprints"]))
    _say_epochs(run.max_steps * int(run.global_batch_size or 0), *task.samples(), say)
    trainer = make_trainer(recipe, task, folder, checkpoint[1] if checkpoint else None, say)
    if run.process_index == 0:
        write_json(folder / "data.json", description)
        write_environment(folder, run.seed, max(1, run.world_size))
    stopped_by = train_to_the_end(trainer, checkpoint, say)
    if stopped_by is not None:
        return Result(folder, {}, None, "", stopped_by=stopped_by)
    return _finish(recipe, task, trainer, folder)


def make_trainer(
    recipe: Recipe, task: TextTask | ImageTask, folder: Path, manifest: dict[str, Any] | None = None, say: Any = print
) -> PretrainTrainer:
    """The task's trainer, with the log of its run. ``manifest`` is that of the checkpoint to go on from, if any."""
    trainer: Any = task.trainer(manifest, say)
    if strategy() != "copy" and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise UserError("accelerate shards no model on this device and would copy it instead; use ddp.yaml, or a GPU")
    trainer.facts |= {
        "run_id": run_id(recipe),
        "recipe": identity(resolved(recipe)),
        "fingerprints": task.description["fingerprints"],
    }
    # Hooks inside a compiled model would break its graph.
    shares = None if recipe.run.torch_compile else CompressionShares(trainer.model)
    shapes = LayerShapes(trainer.model) if recipe.run.record_shapes else None
    log = RunLog(folder / METRICS, trainer, shares=shares, shapes=shapes)
    trainer.callback_handler.callbacks.insert(0, log)  # before the trackers, which are told what it adds
    return trainer


def train_to_the_end(trainer: PretrainTrainer, checkpoint: tuple[Path, dict[str, Any]] | None, say: Any) -> int | None:
    """Train from the checkpoint, or from step 0, to the last step; returns the signal that stopped it before."""
    steps = trainer.args.max_steps
    here = on_this_machine(checkpoint) if checkpoint else None
    with StopOnSignal() as stop:
        trainer.add_callback(stop)
        if checkpoint is None or here is None:
            trainer.train()
        elif not ends_run(checkpoint[1], steps):
            say(f"resume: {checkpoint[0].name}")
            trainer.resume(here, kept=checkpoint[0])
        else:
            say(f"resume: {_all_done(checkpoint[1], steps)}, nothing to train")
            trainer.load(here)
            trainer.end_as(checkpoint[1])
        trainer.settle()
    if here is not None:
        forget(here)
    stopped = stop.received is not None and trainer.state.global_step < trainer.last_step
    return int(stop.received) if stopped and stop.received is not None else None


def _all_done(manifest: dict[str, Any], steps: int) -> str:
    if manifest["step"] == steps:
        return f"all {steps} steps are done"
    return f"the run stopped early, after step {manifest['step']} of {steps}"


def _silent(text: str) -> None:
    pass


def _quiet_libraries() -> None:
    # Trainer repeats at the info and warning levels what our own lines say.
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    # PEFT asks transformers by an old name; nothing a user could do about it.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)


def _say_epochs(samples: int, there: int, what: str, say: Any) -> None:
    epochs = samples / there
    seen = f": every {what} is seen up to {-(-samples // there):,} times" if epochs > 1 else ""
    say(f"data: {samples:,} samples from {there:,} {what}s = {epochs:.2f} epochs{seen}")


def _finish(recipe: Recipe, task: TextTask | ImageTask, trainer: PretrainTrainer, folder: Path) -> Result:
    """Validate, save `model/`, let the task add to it. Can be repeated: a kill in here loses nothing."""
    scores = trainer.last_scores or trainer.scores(trainer.eval_dataset)
    validation = {**task.validation(scores, trainer), "step": trainer.last_step, "seed": recipe.run.seed}
    if STOPPED_EARLY in trainer.facts:
        validation[STOPPED_EARLY] = trainer.facts[STOPPED_EARLY]
    _save_final(trainer, folder)
    sample, norms = "", _norms(recipe, trainer)
    if recipe.run.process_index == 0:
        if norms["largest_difference_to_layernorm"]:
            write_json(folder / "eval" / "norms.json", norms)
        sample = task.finish(trainer, folder)
        write_json(folder / "eval" / "validation.json", validation)
    model = trainer.accelerator.unwrap_model(trainer.model)
    speed = mean_speed(Run(folder).metrics, trainer.objective.unit)
    return Result(folder, validation, speed, sample, task=task, model=model)


def _norms(recipe: Recipe, trainer: PretrainTrainer) -> dict[str, Any]:
    """How far each IBNorm is from LayerNorm, on a few held-out rows; hooks see neither compiled nor sharded models."""
    data: Any = trainer.eval_dataset
    rows = min(ROWS, len(data))
    whole = not (recipe.run.torch_compile or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    unit, each = ("token", int(recipe.data.block_size)) if isinstance(recipe.data, DataArguments) else ("image", 1)
    model: Any = trainer.model
    distances = distance_to_layernorm(model, lambda: trainer.scores(data, rows)) if whole else {}
    return likeness(distances, unit, rows * each)


def _found(recipe: Recipe, task: TextTask | ImageTask, end: tuple[Path, dict[str, Any]], say: Any) -> Result:
    """The results of a finished run, which stays as it is. What it was trained on is compared as for any other."""
    run = Run(str(recipe.run.output_dir))
    task.recorded = end[1].get("fingerprints")
    try:
        mine = agreed(lambda: task.description["fingerprints"])
    except UserError as error:
        say(f"resume: what the recipe names now cannot be compared with what the run was trained on: {error}")
    else:
        require_same_data(end, mine, mine)
        agreed(lambda: task.require_same_base(end[1]), main_only=True)
    done = _all_done(end[1], recipe.run.max_steps)
    say(f"resume: {done}, nothing to train: {run.folder} is finished and stays")
    speed = mean_speed(run.metrics, task.unit)
    return Result(run.folder, dict(run.validation), speed, run.sample, task=task, found=True)


def _save_final(trainer: PretrainTrainer, folder: Path) -> None:
    final = folder / "model"
    writes = trainer.args.should_save
    with tempfile.TemporaryDirectory(prefix=".model.", dir=folder) if writes else nullcontext(os.devnull) as aside:
        trainer.save_model(aside)
        if writes:
            new = Path(aside) / "new"
            new.mkdir()
            for path in [p for p in Path(aside).iterdir() if p != new]:
                os.replace(path, new / path.name)
            if final.exists():
                os.replace(final, Path(aside) / "old")
            new.chmod(0o755)
            seal(new, {**trainer.facts, "step": trainer.last_step})
            os.replace(new, final)
            sync_folder(folder)
    trainer.accelerator.wait_for_everyone()
