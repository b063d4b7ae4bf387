# SPDX-License-Identifier: Apache-2.0
"""The job's task on images: a classifier, judged by accuracy."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..common.paths import digest
from ..common.private_datasets import fingerprint_of
from .images.images import ImageData
from .keys.recipe import Recipe
from .loop.objective import ImageObjective
from .loop.trainer import PretrainTrainer
from .memory import fitting
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
from .model.trial import require_joint_statistics, try_step
from .plan import Plan, plan_of, spread


class ImageTask:
    """Everything of a run that is about images. ``data`` are the images, loaded when first asked for."""

    unit = "images"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.arguments = recipe, arguments_of(recipe)
        self._recorded: dict[str, Any] | None = None
        self.memory = (
            f"lower per_device_train_batch_size from {recipe.run.per_device_train_batch_size} and keep "
            "global_batch_size; with batch statistics a smaller micro-batch is another model, so prefer more processes "
            "with sync_batch_norm"
        )

    @property
    def recorded(self) -> dict[str, Any] | None:
        """Fingerprints of the data that a run was begun with, which it goes on with."""
        return self._recorded

    @recorded.setter
    def recorded(self, fingerprints: dict[str, Any] | None) -> None:
        self._recorded = fingerprints
        begun = (fingerprints or {}).get("commit")
        if begun and "data" in vars(self) and self.data.commit != begun:
            for name in ("data", "facts", "views", "description"):
                vars(self).pop(name, None)

    @cached_property
    def data(self) -> ImageData:
        """Training and validation images; those of the Hub at the commit that the run was begun with."""
        return load_images(self.arguments, (self.recorded or {}).get("commit"))

    @cached_property
    def facts(self) -> ImageFacts:
        """Their shape and classes."""
        return facts_of(self.data, self.arguments)

    @cached_property
    def views(self) -> Views:
        """How they reach the model."""
        return Views(self.arguments, self.facts, self.data)

    def plan(self, *, dry: bool) -> list[str]:
        """What the recipe will do, as lines; ``dry`` loads nothing.

        Raises:
            UserError: it does not fit into memory, and neither ``dry`` nor the key force is set.
        """
        plan = make_image_plan(self.recipe, planned_facts(self.arguments) if dry else self.facts)
        remarks = [] if dry else [f"images: {remark}" for remark in self.data.remarks]
        return [*fitting(plan, self.recipe, dry=dry), *remarks]

    @cached_property
    def description(self) -> dict[str, Any]:
        """`data.json`: where the images are from, how many, and how they reach the model."""
        data = self.data
        return {
            "source": data.source,
            **({"commit": data.commit} if data.commit else {}),
            "classes": list(data.classes),
            **({"left_out": list(data.remarks)} if data.remarks else {}),
            "train": {"images": len(data.train)},
            "validation": {"images": len(data.validation)},
            "input": {"channels": self.facts.channels, "height": self.facts.height, "width": self.facts.width},
            "mean": self.views.mean.tolist(),
            "std": self.views.std.tolist(),
            "fingerprints": self._fingerprints(),
        }

    def _fingerprints(self) -> dict[str, str]:
        """What the images are known by: those of the Hub by name, commit and splits, others by their bytes.

        Where no commit is known, as in runs of earlier versions, by what ``datasets`` itself knows them by.
        """
        parts, asked = {"train": self.data.train, "validation": self.data.validation}, self.arguments
        if not hasattr(parts["train"], "rows"):
            return {"images": digest({name: part.sha256() for name, part in parts.items()})}
        known = {"images": digest({name: fingerprint_of(part.rows) for name, part in parts.items()})}
        if self.data.commit is None or self.recorded == known:
            return known
        columns = [parts["train"].image, parts["train"].label, parts["train"].size]
        splits = [asked.train_split, asked.validation_split]
        key = [self.data.source, asked.images_config, self.data.commit, *splits, *columns]
        return {"images": digest(key), "commit": self.data.commit}

    def samples(self) -> tuple[int, str]:
        """How many training samples there are, and what one is called."""
        return len(self.data.train), "image"

    def trainer(self, manifest: dict[str, Any] | None = None, say: Any = print) -> PretrainTrainer:
        """The trainer at step 0."""
        run = self.recipe.run
        set_seed(run.seed)
        config = build_image_config(self.recipe, self.facts, self.data.classes)
        model = take_trained_part(build_image_model(config, sync=_joint(self.recipe)), self.recipe.model)
        return PretrainTrainer(
            model=model,
            args=run,
            train=self.data.train,
            validation=self.data.validation,
            objective=ImageObjective(self.views),
            processor=self.views.processor,
        )

    def require_same_base(self, manifest: dict[str, Any]) -> None:
        """Nothing: a classifier begins with random weights."""

    def validation(self, scores: dict[str, Any], trainer: PretrainTrainer) -> dict[str, Any]:
        """`eval/validation.json` of the last step's scores."""
        return {**scores, "images_seen": trainer.last_step * trainer.order.batch}

    def finish(self, trainer: PretrainTrainer, folder: Path) -> str:
        """Nothing more: robustness is measured from the finished run."""
        return ""


def make_image_plan(recipe: Recipe, facts: ImageFacts) -> Plan:
    """Build and try the model on the meta device.

    Raises:
        UserError: it cannot be built, or not be trained as the recipe says.
    """
    config = build_image_config(recipe, facts)
    run, asked, joint = recipe.run, arguments_of(recipe), _joint(recipe)
    model = take_trained_part(build_image_model(config, device="meta"), recipe.model)
    if joint:
        require_joint_statistics(build_image_model(config, device="meta", sync=True), run.device.type)
    batch, count = int(run.global_batch_size or 0), trained_counts(model)[1]
    work = [
        f"images: {facts.channels} x {facts.height} x {facts.width} from {asked.images}, {asked.augmentation}",
        f"steps: {run.max_steps:,} of {batch:,} images = {run.max_steps * batch:,} in all {spread(run)}",
    ]
    norm = getattr(config, "norm_type", "its own norms")
    first = f"{config.model_type}, {norm}, {count:,} parameters, {facts.classes:,} classes"
    kept = try_step(model, facts, run, joint=joint)
    return plan_of(recipe, model, first, work, kept=kept, lower="image_size")


def _joint(recipe: Recipe) -> bool:
    return arguments_of(recipe).sync_batch_norm and recipe.run.world_size > 1
