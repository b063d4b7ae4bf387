# SPDX-License-Identifier: Apache-2.0
"""A recipe's whole run beside a bare torch loop: what the Trainer and we add to a step.

    python recipes/benchmarks/loop.py [--recipe recipes/llama/tiny.yaml] [--steps 200] [--threads 1]

Each step of the run is followed, in the same process, by one step of a bare loop: a copy of the model, a batch of the
same shape, the same clipping and fused AdamW, nothing else. A row is a block of as many steps as are between two logged
ones, so that what logging costs is in it; its ratio is the bare loop's time over the run's, that is, the run's share of
the bare loop's tokens/s. Validation and checkpoints are left out. Writes results/loop-cpu.csv.
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import clock, quantiles, write_csv
from transformers import Trainer, TrainerCallback

from ibnorm_hf.training.job import pretrain
from ibnorm_hf.training.keys.recipe import load_recipe

HERE = Path(__file__).parent
LOGGING_STEPS = 10


class BareLoop(TrainerCallback):
    """After each of the run's steps, a bare one; keeps the seconds of both."""

    def __init__(self, trainer: Trainer, batch: int, length: int) -> None:
        self.model = copy.deepcopy(trainer.model).train()
        self.clip = trainer.args.max_grad_norm
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(self.model.config.vocab_size, (batch, length), generator=generator)
        self.run: list[float] = []
        self.bare: list[float] = []
        self.ended: float | None = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        begin = clock()
        if self.ended is not None:
            self.run.append(begin - self.ended)
        loss = self.model(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        end = clock()
        if self.ended is not None:
            self.bare.append(end - begin)
        self.ended = end


def measure(recipe: str, steps: int, folder: Path) -> BareLoop:
    """Run the recipe with a bare loop inside; every step after the first is measured."""
    keys: dict[str, Any] = {"max_steps": steps + 1, "warmup_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
    keys |= {"logging_steps": LOGGING_STEPS, "output_dir": folder / "run", "use_cpu": "true"}
    loaded = load_recipe(recipe, [word for key, value in keys.items() for word in (f"--{key}", str(value))])
    found: list[BareLoop] = []
    real = Trainer.train

    def train(self: Trainer, *given: Any, **more: Any) -> Any:
        found.append(BareLoop(self, self.args.per_device_train_batch_size, loaded.data.block_size))
        self.add_callback(found[-1])
        return real(self, *given, **more)

    Trainer.train = train
    try:
        pretrain(loaded)
    finally:
        Trainer.train = real
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/llama/tiny.yaml")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of one, CPU seconds are counted")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        loop = measure(given.recipe, given.steps, Path(folder))
    tokens = loop.ids.numel() * LOGGING_STEPS
    blocks = range(LOGGING_STEPS, len(loop.run) - LOGGING_STEPS + 1, LOGGING_STEPS)  # the first block warms up
    rows, shares = [], []
    for start in blocks:
        run, bare = (sum(seconds[start : start + LOGGING_STEPS]) for seconds in (loop.run, loop.bare))
        shares.append(bare / run)
        rows.append(
            {
                "recipe": given.recipe,
                "block": start // LOGGING_STEPS,
                "run_tokens_per_s": f"{tokens / run:.0f}",
                "bare_tokens_per_s": f"{tokens / bare:.0f}",
                "run_over_bare": f"{bare / run:.3f}",
            }
        )
    low, median, high = quantiles(shares)
    print(f"tokens/s of the run over the bare loop's: {median:.3f} ({low:.3f}-{high:.3f}), {len(rows)} blocks")
    write_csv(given.out / "loop-cpu.csv", rows)


if __name__ == "__main__":
    main()
