# SPDX-License-Identifier: Apache-2.0
"""Training a classifier of images: a recipe becomes a run folder, as in pretraining."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..common.errors import UserError
from ..common.paths import digest, write_json
from .folder.failures import told
from .folder.run_folder import claim, identity, run_id, write_environment
from .images.images import ImageData
from .keys.image_arguments import ImageArguments
from .keys.recipe import Recipe, load_recipe, resolved
from .loop.callbacks import CompressionShares
from .loop.decay import decay_groups
from .loop.vision_trainer import VisionLog, VisionTrainer
from .model.image_build import (
    ImageFacts,
    Views,
    arguments_of,
    build_image_config,
    build_image_model,
    facts_of,
    load_images,
    planned_facts,
)
from .model.trained_part import take_trained_part, trained_counts
from .plan import _classes, _size, trained_lines
from .pretrain import (  # one job, two kinds
    _checkpoint_to_resume,
    _quiet_libraries,
    _save_final,
    _say_epochs,
    _silent,
    train_to_the_end,
)


@dataclass(frozen=True)
class VisionResult:
    """End of a run: what is needed to judge the model further, or the signal that stopped it early."""

    folder: Path
    validation: dict[str, Any]
    model: Any = None
    data: ImageData | None = None
    views: Views | None = None
    stopped_by: int | None = None


def load_vision_recipe(path: str | Path, arguments: list[str] | None = None) -> Recipe:
    """``load_recipe`` with the keys of ``ImageArguments`` in place of those of text.

    Raises:
        UserError: on any unknown, misspelt, refused or mistyped key, naming where it stands.
    """
    recipe = load_recipe(path, arguments, data_class=ImageArguments)
    if recipe.repo_id is not None:
        raise UserError("push_to_hub: cards are made of language models' files; upload this run with `hf upload`")
    if "remove_unused_columns" in recipe.given:
        raise UserError("remove_unused_columns is decided here; leave it out")
    return recipe


def plan_lines(recipe: Recipe, facts: ImageFacts) -> list[str]:
    """What a recipe will do, worked out on the meta device: model, steps, bytes, decay groups."""
    config = build_image_config(recipe, facts)
    model = take_trained_part(build_image_model(config, device="meta"), recipe.model)
    run, (trained, count) = recipe.run, trained_counts(model)
    batch = int(run.global_batch_size or 0)
    groups = decay_groups(model)
    optimizer = str(getattr(run.optim, "value", run.optim))
    state = 4 * (count + (3 if "adam" in optimizer else 2) * trained)
    norm = getattr(config, "norm_type", "its own norms")
    return [
        f"model: {config.model_type}, {norm}, {count:,} parameters, {facts.classes:,} classes",
        *trained_lines(trained, count),
        f"images: {facts.channels} x {facts.height} x {facts.width} from {arguments_of(recipe).images}, "
        f"{arguments_of(recipe).augmentation}",
        f"steps: {run.max_steps:,} of {batch:,} images = {run.max_steps * batch:,} in all "
        f"({max(1, run.world_size)} processes x {run.gradient_accumulation_steps} micro-batches)",
        f"bytes: {_size(state)} weights, gradients and optimizer a process, without activations",
        f"decay: {len(groups.decay)} tensors: {_classes(groups.decay_classes)}",
        f"no decay: {len(groups.no_decay)} tensors: {_classes(groups.no_decay_classes)}",
    ]


def print_plan(recipe: Recipe) -> None:
    """The `--dry_run` of a recipe: no download, no file."""
    for line in plan_lines(recipe, planned_facts(arguments_of(recipe))):
        print(line)


def train_vision(recipe: Recipe) -> VisionResult:
    """Train a recipe to its last step, resuming what is there, and write its run folder.

    Raises:
        UserError: for every mistake that can be put right, in one sentence.
    """
    run = recipe.run
    folder, main = Path(str(run.output_dir)), run.process_index == 0
    say = print if main else _silent
    _quiet_libraries()
    advice = (
        f"lower per_device_train_batch_size from {run.per_device_train_batch_size} and keep global_batch_size; with "
        "batch statistics a smaller micro-batch is another model, so prefer more processes with sync_batch_norm"
    )
    space = "checkpoints before it are unharmed; free some room, and the same command goes on from the newest"
    with claim(recipe) if main else nullcontext(), told(folder=folder, space=space, memory=advice):
        data = load_images(arguments_of(recipe))
        facts = facts_of(data, arguments_of(recipe))
        for line in plan_lines(recipe, facts):
            say(line)
        return _run(recipe, folder, data, facts, say)


def _run(recipe: Recipe, folder: Path, data: ImageData, facts: ImageFacts, say: Any) -> VisionResult:
    run = recipe.run
    checkpoint = _checkpoint_to_resume(recipe, folder, say)
    views = Views(arguments_of(recipe), facts, data)
    description = describe(data, facts, views)
    if checkpoint is not None and checkpoint[1].get("fingerprints") != description["fingerprints"]:
        raise UserError(f"checkpoint {checkpoint[0]} was trained on other images; choose another output_dir")
    _say_epochs(run.max_steps * int(run.global_batch_size or 0), len(data.train), say)
    trainer = _make_trainer(recipe, data, facts, views, folder)
    trainer.facts["fingerprints"] = description["fingerprints"]
    if run.process_index == 0:
        write_json(folder / "data.json", description)
        write_environment(folder, run.seed, max(1, run.world_size))
    stopped_by = train_to_the_end(trainer, checkpoint, say)
    if stopped_by is not None:
        return VisionResult(folder, {}, stopped_by=stopped_by)
    return _finish(recipe, trainer, data, views, folder)


def describe(data: ImageData, facts: ImageFacts, views: Views) -> dict[str, Any]:
    """`data.json`: where the images are from, how many, and how they reach the model."""
    parts = {}
    for name, part in (("train", data.train), ("validation", data.validation)):
        rows = getattr(part, "rows", None)
        # A data set of the Hub is known by the fingerprint that `datasets` gives it, others by their bytes.
        parts[name] = str(rows._fingerprint) if rows is not None else part.sha256()
    return {
        "source": data.source,
        "classes": list(data.classes),
        "train": {"images": len(data.train)},
        "validation": {"images": len(data.validation)},
        "input": {"channels": facts.channels, "height": facts.height, "width": facts.width},
        "mean": views.mean.tolist(),
        "std": views.std.tolist(),
        "fingerprints": {"images": digest(parts)},
    }


def _make_trainer(recipe: Recipe, data: ImageData, facts: ImageFacts, views: Views, folder: Path) -> VisionTrainer:
    run = recipe.run
    set_seed(run.seed)
    config = build_image_config(recipe, facts, data.classes)
    sync = arguments_of(recipe).sync_batch_norm and run.world_size > 1
    model = take_trained_part(build_image_model(config, sync=sync), recipe.model)
    trainer = VisionTrainer(model=model, args=run, train=data.train, validation=data.validation, views=views)
    trainer.facts = {"run_id": run_id(recipe), "recipe": identity(resolved(recipe))}
    # Hooks inside a compiled model would break its graph.
    shares = None if run.torch_compile else CompressionShares(model)
    log = VisionLog(folder / "metrics.jsonl", tokens_per_step=trainer.order.batch, order=trainer.order, shares=shares)
    trainer.add_callback(log)
    return trainer


def _finish(recipe: Recipe, trainer: VisionTrainer, data: ImageData, views: Views, folder: Path) -> VisionResult:
    """Validate and save `model/`. Can be repeated: a kill in here loses nothing."""
    validation = {
        **trainer.image_scores(data.validation),
        "step": recipe.run.max_steps,
        "images_seen": recipe.run.max_steps * trainer.order.batch,
        "seed": recipe.run.seed,
    }
    _save_final(trainer, folder)
    if recipe.run.process_index == 0:
        write_json(folder / "eval" / "validation.json", validation)
    return VisionResult(folder, validation, trainer.accelerator.unwrap_model(trainer.model), data, views)
