# SPDX-License-Identifier: Apache-2.0
"""The job's task on text: packed blocks, a causal language model, perplexity, and a sample at the end."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from ..common.base import COMMIT, FROZEN, SHA256, base_sha256, changed_base, frozen_sha256
from ..common.errors import UserError, printable
from ..common.packed import COLUMN, unpack
from ..common.paths import cache_root, require_writable_cache, write_atomic
from ..common.private_transformers import commit_of
from .folder.failures import told
from .folder.made_once import in_time, made_once
from .folder.together import agreed
from .keys.arguments import RunArguments
from .keys.recipe import Recipe
from .loop.anneal import AnnealLambda, LambdaPath, plan_lambda
from .loop.callbacks import trim_log
from .loop.objective import TextObjective
from .loop.trainer import PretrainTrainer
from .memory import fitting
from .model.build import build_config, build_trained_model, lambda_schedule, vocab_size
from .model.trained_part import is_adapter
from .plan import make_plan
from .text.corpora import look
from .text.prepare import PreparedData, prepare_data, prepared_as_told

_CALIBRATION_BLOCKS = 8  # training blocks on which `start: auto` and `unit: spread` are measured


def prepare(recipe: Recipe, recorded: dict[str, Any] | None = None) -> PreparedData:
    """Make, or find, the packed blocks of a recipe and nothing more. Every block is checked against its sums.

    ``recorded`` are the fingerprints in the checkpoint that a run goes on from, if any.
    """
    run = recipe.run
    tokens = run.max_steps * int(run.global_batch_size or 0) * recipe.data.block_size
    with told(
        folder=cache_root(),
        space="free some, or set IBNORM_CACHE to another disk; the same command goes on from the last shard",
        memory="lower prepare_workers",
    ):
        # One process a machine reads everything once: silent damage on disk would be trained on otherwise.
        say, check = print if run.process_index == 0 else _silent, run.local_process_index == 0

        def make() -> PreparedData:
            rows = vocab_size(recipe)
            return prepare_data(
                recipe.data, vocab_size=rows, run_tokens=tokens, say=say, check=check, recorded=recorded
            )

        def facts(made: PreparedData) -> dict[str, Any]:
            trained = made.tokenizer if recipe.data.tokenizer == "train" else None
            return {"description": made.description, "folder": made.folder, "tokenizer": trained}

        def take(content: dict[str, Any]) -> PreparedData:
            rows = vocab_size(recipe)
            return in_time(lambda: prepared_as_told(recipe.data, vocab_size=rows, check=check, **content))

        return made_once(make, facts, take)


def _silent(text: str) -> None:
    pass


class TextTask:
    """Everything of a run that is about text. ``data`` are its blocks, prepared when first asked for."""

    unit = "tokens"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.recorded: dict[str, Any] | None = None  # fingerprints of the data that a run was begun with
        self.memory = (
            f"lower per_device_train_batch_size from {recipe.run.per_device_train_batch_size} and keep "
            "global_batch_size, which leaves every step's samples as they are, set activation_checkpointing, or lower "
            f"block_size from {recipe.data.block_size}; checkpoints are unharmed"
        )

    @cached_property
    def data(self) -> PreparedData:
        """The packed blocks."""
        return prepare(self.recipe, self.recorded)

    def plan(self, *, dry: bool) -> list[str]:
        """What the recipe will do, as lines; reads no data.

        Raises:
            UserError: it does not fit into memory, and neither ``dry`` nor the key force is set.
        """
        require_writable_cache()
        look(self.recipe.data)
        return fitting(make_plan(self.recipe), self.recipe, dry=dry)

    @cached_property
    def description(self) -> dict[str, Any]:
        """`data.json`."""
        return self.data.description

    def samples(self) -> tuple[int, str]:
        """How many training samples there are, and what one is called."""
        return len(self.data.train), "block"

    def trainer(self, manifest: dict[str, Any] | None = None, say: Any = print) -> PretrainTrainer:
        """The trainer at step 0. ``manifest`` is that of the checkpoint to go on from, if any."""
        recipe, data = self.recipe, self.data
        set_seed(recipe.run.seed)
        config = build_config(recipe, data.tokenizer)
        model = build_trained_model(recipe, config)
        trainer = PretrainTrainer(
            model=model,
            args=recipe.run,
            train=data.train,
            validation=data.validation,
            objective=TextObjective(),
            processor=data.tokenizer,
        )
        trainer.facts |= self._base(config, manifest)
        if is_adapter(model):
            if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
                raise UserError(
                    "an adapter is trained on whole copies of its base: use accelerate/ddp.yaml, or one process"
                )
            trainer.facts[FROZEN] = frozen_sha256(model)
            self._require_same({FROZEN: trainer.facts[FROZEN]}, {FROZEN: None} | manifest if manifest else {})
        trainer.anneal = self._annealing(config, trainer, manifest, say)
        if recipe.run.sample_steps is not None:
            trainer.add_callback(Samples(trainer, data.tokenizer, recipe.run))
        return trainer

    def _base(self, config: Any, manifest: dict[str, Any] | None) -> dict[str, str]:
        """What the pretrained model is, beside its name: the digest of its config and weights, or its commit.

        Raises:
            UserError: the checkpoint was trained from another one of that name.
        """
        source = self.recipe.model.pretrained
        if source is None:
            return {}
        found = {
            SHA256: agreed(lambda: base_sha256(source), main_only=True),
            COMMIT: commit_of(config),
        }
        facts = {name: value for name, value in found.items() if value is not None}
        self._require_same(facts, manifest or {})
        return facts

    def require_same_base(self, manifest: dict[str, Any]) -> None:
        """Raise UserError if a local pretrained model is no longer the one that a finished run was trained from."""
        source = self.recipe.model.pretrained
        found = base_sha256(source) if source else None
        self._require_same({SHA256: found} if found else {}, manifest)
        if FROZEN in manifest and SHA256 not in manifest:  # of an earlier version
            model = build_trained_model(self.recipe, build_config(self.recipe, self.data.tokenizer))
            self._require_same({FROZEN: frozen_sha256(model)}, manifest)

    def _require_same(self, facts: dict[str, Any], manifest: dict[str, Any]) -> None:
        for name, value in facts.items():
            # Checkpoints of earlier versions do not say it.
            if manifest.get(name, value) != value:
                raise UserError(f"{changed_base(str(self.recipe.model.pretrained))}, or choose another output_dir")

    def _annealing(
        self, config: Any, trainer: PretrainTrainer, manifest: dict[str, Any] | None, say: Any
    ) -> AnnealLambda | None:
        """Lower lambda as the recipe says. What had to be measured is measured once, and read again on resuming."""
        found = lambda_schedule(self.recipe, config)
        if found is None:
            return None
        model: Any = trainer.model
        try:
            path = LambdaPath.from_dict(manifest["norm_lambda"]) if manifest else None
        except (KeyError, TypeError, ValueError):
            raise UserError("the checkpoint does not say how its lambda fell; choose another output_dir") from None
        if path is None:
            # Spread over the corpus: its first blocks may be all of one kind.
            train = self.data.train
            count = len(train)
            rows = train[sorted({i * count // _CALIBRATION_BLOCKS for i in range(_CALIBRATION_BLOCKS)})][COLUMN]
            # Rounding may differ between the machines of a run, and its processes must agree on lambda.
            path = agreed(lambda: plan_lambda(model, *found, *unpack(rows)), main_only=True)
            for line in path.lines():
                say(line)
        trainer.facts["norm_lambda"] = path.as_dict()
        anneal = AnnealLambda(model, path)
        anneal.set(manifest["step"] if manifest else 1, self.recipe.run.max_steps)
        trainer.add_callback(anneal)
        return anneal

    def validation(self, scores: dict[str, Any], trainer: PretrainTrainer) -> dict[str, Any]:
        """`eval/validation.json` of the last step's scores."""
        facts = self.data.description["validation"]
        return {
            **scores,
            "bits_per_byte": scores["loss"] / math.log(2) / facts["bytes_per_token"],
            "blocks": len(self.data.validation),
            "sha256": facts["sha256"],
            "tokens_seen": trainer.last_step * trainer.order.batch * self.recipe.data.block_size,
        }

    def finish(self, trainer: PretrainTrainer, folder: Path) -> str:
        """What the main process does when `model/` is saved: a sample, which is returned."""
        sample = generate_sample(trainer, self.data.tokenizer, self.recipe.run.sample_prompt, self.recipe.run.seed)
        write_atomic(folder / "eval" / "sample.txt", sample + "\n")
        return sample


class Samples(TrainerCallback):
    """Write what the model says every ``sample_steps`` steps to ``eval/samples.jsonl``; main process only."""

    def __init__(self, trainer: PretrainTrainer, tokenizer: Any, run: RunArguments) -> None:
        self.trainer, self.tokenizer, self.run = trainer, tokenizer, run
        self.path = Path(str(run.output_dir)) / "eval" / "samples.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            trim_log(self.path, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or state.global_step % int(self.run.sample_steps or 1):
            return
        with self.trainer.clock.paused():
            text = generate_sample(self.trainer, self.tokenizer, self.run.sample_prompt, self.run.seed)
            model: Any = self.trainer.model
            model.train()
            self.path.parent.mkdir(exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": state.global_step, "text": text}) + "\n")
        print(f"step {state.global_step}  sample: {printable(text)}", flush=True)


def generate_sample(trainer: PretrainTrainer, tokenizer: Any, prompt: str, seed: int) -> str:
    """Forty sampled tokens after ``prompt``: the same for the same weights and seed."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return ""  # one process alone cannot run a sharded model
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(trainer.args.device)
    if not ids.numel():
        ids = torch.tensor([[tokenizer.eos_token_id]], device=trainer.args.device)
    model.eval()
    with torch.random.fork_rng(), trainer.accelerator.autocast():
        torch.manual_seed(seed)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=True,
            top_k=50,
            pad_token_id=tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(out[0], skip_special_tokens=True))
