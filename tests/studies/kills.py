# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of a whole study at random moments; then the same command must end in the undisturbed report.

    python -m tests.studies.kills --forked 20      # studies in forks of this process: seconds a kill
    python -m tests.studies.kills --local 20 --slurm 20 --json recipes/benchmarks/results/study_kills.json

``--local`` kills the real command with its worker processes: the whole group, or the command alone, whose workers must
then die with it. ``--slurm`` does the same under a real Slurm of one node: the command alone, while its jobs go on, or
a job. The seed is printed; ``IBNORM_TEST_SEED`` takes it back. A result that is there is added to, each seed once;
with ``--minutes`` no further study is begun after that time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ibnorm_hf.studies.archive import ARCHIVE
from recipes.benchmarks.stamp import stamped

from ..faults.kills import Points
from ..faults.tally import Tally
from ..forks import get_ready
from ..slurm import one_node

ROOT = Path(__file__).resolve().parents[2]
RESULT = "recipes/benchmarks/results/study_kills.json"
BASE = f"""
model_type: ibnorm_llama
model: {{vocab_size: 300, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
  max_position_embeddings: 16}}
corpus: {ROOT / "LICENSE"}
tokenizer: train
block_size: 16
validation_fraction: 0.1
validation_tokens: 64
max_steps: 3
global_batch_size: 2
per_device_train_batch_size: 2
learning_rate: 1.0e-2
logging_steps: 1
eval_steps: 3
save_steps: 2
report_to: none
use_cpu: true
"""
STUDY = """
base: base.yaml
baseline: rmsnorm
margin: 0.05
arms:
  rmsnorm: {norm_type: rmsnorm}
  l: {norm_type: ibnorm-l}
claim_seeds: [1, 2]
"""
# Two more phases: in forks, since the processes of a phase would import anew.
GRID = "grid: {learning_rate: [1.0e-2, 3.0e-2]}\ntuning_seeds: [101]\n"


def write_study(folder: Path, text: str, base: str = BASE) -> Path:
    """A study's file beside the recipe that it starts from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(base)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


def content(out: Path) -> dict[str, bytes]:
    """The report by file; what the clock measured is no part of it: seconds, and logs that say them.

    Nor is the hidden file that a kill in the middle of a write leaves.
    """
    apart = ("timing.json", ARCHIVE)
    files = sorted(path for path in (out / "report").iterdir() if path.name not in apart)
    return {path.name: path.read_bytes() for path in files if not (path.name[0] == "." and path.suffix == ".tmp")}


class Here:
    """Makes runs one after another in this process."""

    def run(self, jobs: list[Any]) -> Iterator[tuple[Any, None]]:
        from ibnorm_hf.studies.runs import execute

        for job in jobs:
            execute(job)
            yield job, None


class Forked:
    """An attempt is a fork of this process: killed by the clock, or at a chosen call of the file system or a step."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.study, self.chance, self.points = write_study(folder, STUDY + GRID), chance, 0
        self.killed = ""

    def attempt(self, out: Path, limit: float | None) -> tuple[int, str]:
        """(status, what was said); ``limit`` is the longest time to a kill, None for no kill.

        What was killed is in ``killed`` then, empty where nothing was. A study may go on after it to its end.
        """
        by_clock = limit is not None and (self.chance.random() < 0.5 or not self.points)
        fatal = None if limit is None or by_clock else self.chance.randint(1, self.points)
        after = self.chance.uniform(0, limit) if by_clock and limit is not None else None
        log, count = out.with_suffix(".log"), out.with_suffix(".count")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._run(out, log, count, fatal)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if count.exists():
            self.points = max(self.points, int(count.read_text()))
        text = log.read_text(errors="replace")
        where = text.rpartition("killed at: ")[2].splitlines()[0] if "killed at: " in text else "by the clock"
        self.killed = where if os.WIFSIGNALED(status) else ""
        return status, text

    def two_at_once(self, folder: Path) -> list[str]:
        """Two of the same command on one folder; returns what was wrong, as against one alone."""
        out, whole = folder / "both", folder / "alone"
        self.attempt(whole, None)
        log = [folder / f"{name}.log" for name in ("first", "second")]
        sys.stdout.flush()
        children = []
        for path in log:
            children.append(os.fork())
            if children[-1] == 0:
                self._run(out, path, path.with_suffix(".count"), None)
        wrong = [path.read_text()[-800:] for child, path in zip(children, log, strict=True) if os.waitpid(child, 0)[1]]
        return wrong or ([] if content(out) == content(whole) else ["two at once end in another report"])

    def _run(self, out: Path, log: Path, count: Path, fatal: int | None) -> None:
        from ibnorm_hf.studies.compare import open_study

        status = 3
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            points = Points(fatal)
            points.arm()
            open_study(self.study, out, Here(), lambda text: None).run()
            count.write_text(str(points.count))
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)


class Command:
    """An attempt is the real command, in a process group of its own."""

    words = ("--processes", "2")

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.study, self.chance, self.killed = write_study(folder, STUDY), chance, ""

    def attempt(self, out: Path, limit: float | None) -> tuple[int, str]:
        """As ``Forked.attempt``."""
        words = [sys.executable, "-m", "ibnorm_hf.cli", "compare", str(self.study), "--out", str(out), *self.words]
        with open(out.with_suffix(".log"), "w") as log:
            process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            self.killed = ""
            if limit is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.chance.uniform(0, limit))
                if process.poll() is None:
                    self.killed = self.kill(process)
            status = process.wait()
        return 0 if status in (0, 3) else abs(status), out.with_suffix(".log").read_text(errors="replace")

    def kill(self, process: subprocess.Popen[bytes]) -> str:
        """Kill something of the study; returns what."""
        if self.chance.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
            return "the command and its workers"
        process.kill()
        return "the command alone"


class Slurm(Command):
    """The same under Slurm: the command dies and its jobs go on, or a job dies and the command goes on."""

    words = ("--executor", "slurm", "--at_once", "2")

    def kill(self, process: subprocess.Popen[bytes]) -> str:
        done = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%A"], capture_output=True, text=True)
        running = done.stdout.split()
        if running and self.chance.random() < 0.5:
            subprocess.run(["scancel", "--signal=KILL", "--full", self.chance.choice(running)], check=False)
            process.wait()
            return "a job"
        process.kill()
        return "the command alone"


def torture(
    kind: Any, folder: Path, count: int, chance: random.Random, say: Callable[[str], Any], minutes: float = math.inf
) -> Tally:
    """Kill studies ``count`` times, or fewer in ``minutes``; hold each finished one against one that was left alone."""
    tally, way = Tally(), kind(folder / "study", chance)
    begin = time.monotonic()
    status, text = way.attempt(folder / "whole", None)
    if status:
        raise RuntimeError(f"the undisturbed study failed:\n{text}")
    seconds, wanted = time.monotonic() - begin, content(folder / "whole")
    while tally.tried < count and time.monotonic() - begin < 60 * minutes:
        out, kills = folder / f"out{tally.series}", 0
        tally.series += 1
        for _ in range(min(chance.randint(2, 5), count - tally.tried)):
            status, text = way.attempt(out, seconds)
            if way.killed:
                kills += 1
                tally.where[way.killed] += 1
            elif status:
                tally.complaints.append(f"a study that nothing killed failed: {text[-800:]}")
            if status == 0:
                break
        status, text = way.attempt(out, None)
        wrong = f"it failed: {text[-800:]}" if status else unlike(out, wanted)
        tally.ended(kills, wrong)
        if not wrong:
            shutil.rmtree(out)
        say(f"{kind.__name__.lower()}: {tally.tried}/{count} kills in {tally.series} studies, {kills} in a row")
    return tally


def unlike(out: Path, wanted: dict[str, bytes]) -> str:
    """What is wrong with a finished study, as against the report of one left alone; empty where nothing is."""
    found = content(out)
    if found != wanted:
        differing = [name for name, value in found.items() if wanted.get(name) != value]
        return f"{out.name} differs in {differing or 'what is missing'}"
    kept = [str(path) for path in out.rglob("*") if path.name.startswith("checkpoint-")]
    return f"{out.name} keeps {kept[0]}" if kept else ""


def together(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two rounds of a kind as one; a seed that is there already would count the same kills twice.

    Raises:
        ValueError: the rounds share a seed.
    """
    if set(first["seeds"]) & set(second["seeds"]):
        raise ValueError(f"seed {second['seeds'][0]} is in the result already; give another one")
    summed = {key: first[key] + second[key] for key in ("seeds", "tried", "studies", "complaints")}
    summed["lost"] = first.get("lost", 0) + second["lost"]
    summed["survived"] = summed["tried"] - summed["lost"]
    where = Counter(first["where"]) + Counter(second["where"])
    return summed | {"in_a_row": max(first["in_a_row"], second["in_a_row"]), "where": dict(sorted(where.items()))}


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill studies at random and compare what comes of them.")
    for name in ("forked", "local", "slurm"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=os.environ.get("IBNORM_TEST_SEED"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if words.seed is None else int(words.seed)
    print(f"seed {seed} (the same again: IBNORM_TEST_SEED={seed})", flush=True)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torch.set_num_threads(1)
    say = lambda text: print(text, flush=True)  # noqa: E731
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="study-kills-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ.setdefault("IBNORM_CACHE", str(folder / "cache"))
        if words.forked:
            get_ready()
            (folder / "pair").mkdir()
            wrong = Forked(folder / "pair" / "study", random.Random(seed)).two_at_once(folder / "pair")
            made["forked"] = torture(Forked, folder / "forked", words.forked, random.Random(seed), say, words.minutes)
            made["forked"].complaints += wrong
        if words.local:
            made["local"] = torture(Command, folder / "local", words.local, random.Random(seed), say, words.minutes)
        if words.slurm:
            (folder / "node").mkdir()
            with one_node(folder / "node") as environment:
                os.environ |= environment
                made["slurm"] = torture(Slurm, folder / "slurm", words.slurm, random.Random(seed), say, words.minutes)
    result = {name: {"seeds": [seed], **tally.as_dict("studies")} for name, tally in made.items()}
    complaints = [line for tally in made.values() for line in tally.complaints]
    for line in complaints:
        print(line, file=sys.stderr)
    print(json.dumps(result))
    if words.json:
        words.json.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(words.json.read_text()) if words.json.exists() else {}
        for name, entry in result.items():
            result[name] = together(before[name], entry) if name in before else entry
        words.json.write_text(json.dumps(stamped(RESULT, before | result), indent=2) + "\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
