# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments, several times in a row; then the run must end as if nothing had happened.

    python -m tests.faults.kills --count 200 --json recipes/benchmarks/results/kills.json

One process imports everything once and forks each attempt, so that an attempt costs a second. Half of the kills
come by the clock, half at a chosen call of the file system or the training loop, among them in the middle of a
file that is being written. The reference is the same recipe, never interrupted. The seed is printed; the same seed
makes the same plan (the clock's kills land where they land).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recipes.benchmarks.stamp import stamped

from ..forks import get_ready
from .tally import Tally

LICENSE = Path(__file__).parents[2] / "LICENSE"
RECIPE = f"""
model_type: ibnorm_llama
model: {{vocab_size: 300, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
        max_position_embeddings: 32}}
corpus: {LICENSE}
block_size: 16
validation_fraction: 0.1
validation_tokens: 64
token_budget: 320  # 20 blocks: with 4 a step, the samples start over after every fifth step
max_steps: 14
global_batch_size: 4
per_device_train_batch_size: 4
learning_rate: 1.0e-2
warmup_steps: 2
logging_steps: 3
eval_steps: 7
save_steps: 3
save_total_limit: 2
use_cpu: true
"""
SCENARIOS = {
    "ibnorm-l, accumulation": ["--norm_type", "ibnorm-l", "--per_device_train_batch_size", "2", "--save_steps", "4"],
    "normalnorm, accumulation": ["--norm_type", "normalnorm", "--per_device_train_batch_size", "1"],
    "ibnorm-l, at epochs' ends": ["--norm_type", "ibnorm-l", "--save_steps", "5", "--save_total_limit", "9"],
    "normalnorm, every step": ["--norm_type", "normalnorm", "--save_steps", "1", "--logging_steps", "1"],
}


class Points:
    """Calls at which a run can be killed: counted, or fatal at one of them."""

    def __init__(self, fatal: int | None = None) -> None:
        self.fatal, self.count = fatal, 0

    def arm(self) -> None:
        """Patch this process, which is a fork made for one attempt."""
        from ibnorm_hf.training.loop.trainer import PretrainTrainer

        for owner, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
            setattr(owner, name, self._before(name, getattr(owner, name)))
        PretrainTrainer.training_step = self._before("step", PretrainTrainer.training_step)  # type: ignore[method-assign]
        torch.save = self._torn(torch.save)

    def _before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **keys: Any) -> Any:
            self._pass(name)
            return real(*words, **keys)

        return call

    def _torn(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def save(content: Any, path: Any, *words: Any, **keys: Any) -> None:
            def half() -> None:
                whole = io.BytesIO()
                real(content, whole)
                Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])

            self._pass("torn file", half)
            real(content, path, *words, **keys)

        return save

    def _pass(self, name: str, last_act: Callable[[], None] | None = None) -> None:
        self.count += 1
        if self.count == self.fatal:
            if last_act:
                last_act()
            os.write(1, f"killed at: {name}\n".encode())  # wherever sys.stdout leads at this moment
            os.kill(os.getpid(), signal.SIGKILL)


def attempt(
    folder: Path, keys: list[str], *, fatal: int | None = None, after: float | None = None
) -> tuple[int, str, int]:
    """Fork one run of the recipe; returns (exit status as of os.waitpid, its output, its count of points)."""
    from ibnorm_hf.training import job
    from ibnorm_hf.training.keys.recipe import load_recipe

    log, count = folder.with_suffix(".log"), folder.with_suffix(".count")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 3
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            points = Points(fatal)
            points.arm()
            job.pretrain(load_recipe(folder.parent / "tiny.yaml", [*keys, "--output_dir", str(folder)]))
            count.write_text(str(points.count))
            sys.stdout.flush()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status, log.read_text(errors="replace"), int(count.read_text()) if status == 0 and count.exists() else 0


def newest(run: Path) -> int:
    """Step of the newest complete checkpoint, 0 without one."""
    from ibnorm_hf.training.folder.manifest import newest_complete

    found = newest_complete(run, lambda text: None)
    return found[1]["step"] if found else 0


def torture(count: int, seed: int, say: Callable[[str], None] = print) -> Tally:
    """Kill runs ``count`` times, and compare each finished run with one that was left alone."""
    from .compare import unlike

    chance = random.Random(seed)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        os.environ.setdefault("IBNORM_CACHE", str(folder / "cache"))
        (folder / "tiny.yaml").write_text(RECIPE)
        references = {}
        for number, (scenario, keys) in enumerate(SCENARIOS.items()):
            whole = folder / f"whole{number}"
            attempt(folder / "warm", keys)  # the first builds the packed data and the kernel
            shutil.rmtree(folder / "warm")
            begin = time.monotonic()
            status, text, points = attempt(whole, keys)
            if status:
                raise RuntimeError(f"the uninterrupted run failed:\n{text}")
            references[scenario] = (keys, whole, time.monotonic() - begin, points)
        while tally.tried < count:
            scenario = list(SCENARIOS)[tally.series % len(SCENARIOS)]
            keys, whole, seconds, points = references[scenario]
            tally.series += 1
            run = folder / f"run{tally.series}"
            kills = 0
            finished = False
            for _ in range(min(chance.randint(2, 4), count - tally.tried)):
                before = newest(run)
                if chance.random() < 0.5:
                    status, text, _ = attempt(run, keys, after=chance.uniform(0.02, seconds))
                else:
                    status, text, _ = attempt(run, keys, fatal=chance.randint(1, points))
                if os.WIFEXITED(status):
                    finished = os.WEXITSTATUS(status) == 0
                    if not finished:
                        tally.complaints.append(f"{scenario}: {text[-800:]}")
                    break
                kills += 1
                point = text.rpartition("killed at: ")[2].strip() if "killed at: " in text else "by the clock"
                tally.where[point] += 1
                if newest(run) < before:
                    tally.lost += 1
                    tally.complaints.append(f"{scenario}: checkpoint {before} was lost")
            status, text, _ = (0, "", 0) if finished else attempt(run, keys)
            wrong = [f"it failed: {text[-800:]}"] if status else unlike(whole, run)
            tally.ended(kills, f"{scenario}, series {tally.series}: {'; '.join(wrong)}" if wrong else "")
            if not wrong:
                shutil.rmtree(run)
            say(f"{tally.tried}/{count} kills, lost {tally.lost}  ({scenario}: {kills} in a row)")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill training runs at random and compare what comes of them.")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    words = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if words.seed is None else words.seed
    print(f"seed {seed}", flush=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    get_ready()
    begin = time.monotonic()
    tally = torture(words.count, seed, lambda text: print(text, flush=True))
    content = {"seed": seed, **tally.as_dict("runs"), "seconds": round(time.monotonic() - begin)}
    for line in tally.complaints:
        print(line, file=sys.stderr)
    print(json.dumps({key: value for key, value in content.items() if key != "complaints"}))
    if words.json:
        words.json.parent.mkdir(parents=True, exist_ok=True)
        content = stamped("recipes/benchmarks/results/kills.json", content)
        words.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if tally.lost or tally.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
