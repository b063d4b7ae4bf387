# SPDX-License-Identifier: Apache-2.0
"""Ways to put IBNorm into a pretrained model: validation loss against tokens seen, over one budget of tokens.

    python recipes/benchmarks/conversion.py run MODEL CORPUS --model_about "..." --corpus_about "..."
    python recipes/benchmarks/conversion.py render

`run` does the runs that `results/conversion.json` does not hold yet, each an `ibnorm-hf finetune` of a recipe under
`recipes/finetune/`, and can be stopped at any time. The learning rate of every arm is the best of two or three over a
short search with a seed, and so an order of samples, of its own; the search and the table are judged on the same
held-out text, each arm alike. `render` draws `results/conversion.png` and writes the table between the markers of
README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from stamp import stamped

from ibnorm_hf.common.paths import write_atomic, write_json
from ibnorm_hf.training.folder.run_folder import hardware

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "recipes" / "benchmarks" / "results" / "conversion.json"
PICTURE = RESULTS.with_suffix(".png")
MARKERS = ("<!-- conversion -->", "<!-- /conversion -->")

NORM, TARGET = "ibnorm-l", 4.0
BLOCK, BATCH, STEPS, SEARCH_STEPS, SEED, SEARCH_SEED = 256, 4, 64, 16, 1, 0
VALIDATION_TOKENS, EVALUATIONS = 4096, 4
KEPT = {"norm_type": "null", "norm_lambda_schedule": "null"}
DIRECT = {"norm_lambda": str(TARGET), "norm_lambda_schedule": "null"}


def annealed(**schedule: Any) -> dict[str, str]:
    """A schedule down to the target, unless another end is given."""
    return {"norm_lambda_schedule": json.dumps({"end": TARGET, **schedule})}


# Arm -> recipe, keys over it, learning rates to choose from. The last two stand on a model converted before.
ARMS: dict[str, tuple[str, dict[str, str], tuple[float, ...]]] = {
    "control: norms kept": ("full", KEPT, (3e-5, 1e-4, 3e-4)),
    "direct swap": ("full", DIRECT, (1e-4, 3e-4, 1e-3)),
    "annealed": ("full", annealed(), (3e-4, 1e-3)),
    "norms only": ("norms", {}, (3e-3, 1e-2)),
    "LoRA + norms": ("lora", {}, (1e-3, 3e-3)),
}
# Other ways down and other targets, each at the learning rate of the arm that it varies.
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "annealed, decelerating": ("annealed", annealed(shape="decelerating", warmup_share=0.0, anneal_share=0.9)),
    "direct swap, lambda 300": ("direct swap", {**DIRECT, "norm_lambda": "300"}),
    "annealed to lambda 300": ("annealed", annealed(end=300)),
    "direct swap, 10 spreads a norm": ("direct swap", annealed(start=10, end=10, unit="spread")),
    "annealed to 10 spreads a norm": ("annealed", annealed(end=10, unit="spread")),
}


PAIRS = [
    ("direct swap", "control: norms kept"),
    ("direct swap, lambda 300", "control: norms kept"),
    ("direct swap, 10 spreads a norm", "control: norms kept"),
    ("annealed", "direct swap"),
    ("annealed, decelerating", "direct swap"),
    ("annealed to lambda 300", "direct swap, lambda 300"),
    ("annealed to 10 spreads a norm", "direct swap, 10 spreads a norm"),
    ("norms only", "direct swap"),
    ("LoRA + norms", "direct swap"),
]


class Study:
    """The runs under one folder and the results file that they end in."""

    def __init__(self, model: str, corpus: str, folder: Path) -> None:
        self.model, self.corpus, self.folder = model, corpus, folder
        self.results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
        self.lock = threading.Lock()

    def converted(self) -> str:
        """The base of the adapters: the same swap, before training."""
        target = self.folder / "converted"
        if not target.exists():
            words = ["convert", self.model, str(target), "--norm_type", NORM, "--norm_lambda", str(TARGET)]
            subprocess.run([sys.executable, "-m", "ibnorm_hf.cli", *words], check=True, stdout=subprocess.DEVNULL)
        return str(target)

    def run(self, name: str, recipe: str, keys: dict[str, str], rate: float, *, steps: int, seed: int) -> float:
        """Train, or find, one run; returns its last validation loss."""
        found = self.results["runs"].get(name, {"steps": steps, "seed": seed})
        if (found["steps"], found["seed"]) != (steps, seed):
            raise SystemExit(f"{RESULTS} holds '{name}' of another length or seed; move it away")
        if name not in self.results["runs"]:
            output = self.folder / re.sub(r"[^a-z0-9.-]+", "_", name.lower())
            begin = time.monotonic()
            self._train(output, recipe, keys, rate, steps, seed)
            with self.lock:
                self.results["runs"][name] = {
                    "learning_rate": rate,
                    "steps": steps,
                    "seed": seed,
                    "minutes": round((time.monotonic() - begin) / 60, 1),
                    **outcome(output),
                }
                self.results = stamped("recipes/benchmarks/results/conversion.json", self.results)
                write_json(RESULTS, self.results)
                print(f"{name}: {self.results['runs'][name]['validation'][-1]}", flush=True)
        return float(self.results["runs"][name]["validation"][-1]["loss"])

    def _train(self, output: Path, recipe: str, keys: dict[str, str], rate: float, steps: int, seed: int) -> None:
        search = steps == SEARCH_STEPS
        values = {
            "pretrained": self.model if recipe == "full" else self.converted(),
            "corpus": self.corpus,
            "output_dir": str(output),
            "block_size": BLOCK,
            "validation_tokens": VALIDATION_TOKENS,
            "validation_fraction": 0.01,
            "global_batch_size": BATCH,
            "per_device_train_batch_size": BATCH,
            "max_steps": steps,
            "learning_rate": rate,
            "warmup_steps": max(2, steps // 16),
            # The search is judged at its end alone, which every run validates.
            "eval_strategy": "no" if search else "steps",
            "eval_steps": steps // EVALUATIONS,
            "eval_on_start": "false" if search else "true",
            "save_steps": steps,
            "logging_steps": 4,
            "save_strategy": "no" if search else "steps",
            "seed": seed,
            "bf16": "true",
            "sample_prompt": "The",
            **keys,
        }
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "ibnorm_hf.cli", "finetune", str(ROOT / f"recipes/finetune/{recipe}.yaml")]
        with open(log_of(output), "w") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([*command, *words], check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def best_rate(self, arm: str) -> float:
        """The learning rate with the lowest loss of the short search."""
        recipe, keys, rates = ARMS[arm]
        losses = {
            rate: self.run(f"search: {arm}, {rate:g}", recipe, keys, rate, steps=SEARCH_STEPS, seed=SEARCH_SEED)
            for rate in rates
        }
        return min(losses, key=lambda rate: losses[rate])

    def arm(self, arm: str) -> float:
        recipe, keys, _ = ARMS[arm]
        rate = self.best_rate(arm)
        self.run(arm, recipe, keys, rate, steps=STEPS, seed=SEED)
        return rate

    def variant(self, name: str) -> float:
        arm, keys = VARIANTS[name]
        return self.run(name, "full", keys, self.best_rate(arm), steps=STEPS, seed=SEED)


def log_of(run: Path) -> Path:
    """What a run printed; beside its folder, which must be empty when it begins."""
    return run.with_name(f"{run.name}.log")


def outcome(run: Path) -> dict[str, Any]:
    """What a run folder says: loss at every validation, parameters trained, bytes of saved weights, lambda."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    tokens_a_step = config["global_batch_size"] * config["block_size"]
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [
        {"tokens": line["step"] * tokens_a_step, "loss": round(line["eval_loss"], 4)}
        for line in lines
        if "eval_loss" in line
    ]
    if not validation:
        end = json.loads((run / "eval" / "validation.json").read_text())
        validation = [{"tokens": end["tokens_seen"], "loss": round(end["loss"], 4)}]
    log = log_of(run).read_text()
    counts = re.search(r"trained: ([\d,]+) of ([\d,]+)", log) or re.search(r"norms?[^,]*, ([\d,]+)() parameters", log)
    assert counts, f"{log_of(run)} names no parameters"
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    return {
        "validation": validation,
        "trained": int(counts[1].replace(",", "")),
        "saved_bytes": sum(p.stat().st_size for p in (run / "model").glob("*.safetensors")),
        "start": manifest.get("norm_lambda", {}).get("measured", {}).get("auto_start"),
    }


def run_all(given: argparse.Namespace) -> None:
    given.folder.mkdir(parents=True, exist_ok=True)
    study = Study(given.model, given.corpus, given.folder)
    study.results |= {
        "model": given.model_about,
        "corpus": given.corpus_about,
        "setting": {
            "norm_type": NORM,
            "norm_lambda": TARGET,
            "block_size": BLOCK,
            "tokens_a_step": BATCH * BLOCK,
            "steps": STEPS,
            "search_steps": SEARCH_STEPS,
            "validation_tokens": VALIDATION_TOKENS,
            "learning_rates": {arm: list(rates) for arm, (_, _, rates) in ARMS.items()},
        },
        "hardware": hardware(),
    }
    study.converted()
    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(study.arm, [arm for arm in ARMS if not given.only or arm in given.only]))
        list(pool.map(study.variant, [name for name in VARIANTS if not given.only or name in given.only]))


def table(results: dict[str, Any]) -> str:
    runs = results["runs"]
    marks = sorted({point["tokens"] for name in runs if name in ARMS for point in runs[name]["validation"]})
    header = ["arm", "trained", "saved MB", "rate", *(f"{mark // 1000}k" for mark in marks), "min"]
    rows = []
    for name in [n for n in (*ARMS, *VARIANTS) if n in runs]:
        run = runs[name]
        losses = {point["tokens"]: point["loss"] for point in run["validation"]}
        rows.append(
            [
                name,
                f"{run['trained']:,}",
                f"{run['saved_bytes'] / 1e6:.1f}",
                f"{run['learning_rate']:g}",
                *(f"{losses[mark]:.2f}" if mark in losses else "-" for mark in marks),
                f"{run['minutes']:.0f}",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def comparisons(runs: dict[str, Any]) -> list[str]:
    """A line for each pair of ways to the same target: the difference at the end of the budget."""

    def last(name: str) -> float:
        return float(runs[name]["validation"][-1]["loss"])

    pairs = [(one, other) for one, other in PAIRS if one in runs and other in runs]
    lines = [f"- {one}, against {other}: {last(one) - last(other):+.2f} nats." for one, other in pairs]
    title = "At the end of the budget (below 0: the first is better; one seed, so small differences are no findings):"
    edges = [arm for arm in ARMS if arm in runs and runs[arm]["learning_rate"] == max(ARMS[arm][2])]
    grid = f"The chosen rate is the highest of its grid for {', '.join(edges)}: a wider one may help them."
    return [title, "", *lines, *(["", grid] if edges else [])]


def draw(results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9.5, 4.5), layout="constrained")
    for name in [n for n in (*ARMS, *VARIANTS) if n in results["runs"]]:
        points = results["runs"][name]["validation"]
        style = {"marker": "o"} if name in ARMS else {"marker": ".", "linestyle": "--"}
        axes.plot([p["tokens"] / 1000 for p in points], [p["loss"] for p in points], label=name, **style)
    axes.set_xlabel("training tokens, thousands")
    axes.set_ylabel("validation loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.savefig(PICTURE, dpi=120)
    plt.close(figure)


def render() -> str:
    """The text between the markers of README.md."""
    results = json.loads(RESULTS.read_text())
    setting, machine = results["setting"], results["hardware"]
    budget = setting["steps"] * setting["tokens_a_step"]
    return "\n".join(
        [
            f"{results['model']} on {results['corpus']}: norms swapped to {setting['norm_type']} at lambda "
            f"{setting['norm_lambda']:g}, then {budget:,} training tokens in blocks of {setting['block_size']}, bf16 "
            f"autocast, one thread of a shared machine of {machine['cpu_cores']} cores. Validation loss (nats a token, "
            f"{setting['validation_tokens']:,} held-out tokens) against training tokens; one seed an arm, the learning "
            f"rate the best of two or three over a search of {setting['search_steps']} steps with another seed "
            "(`python recipes/benchmarks/conversion.py`; every run: `recipes/benchmarks/results/conversion.json`).",
            "",
            table(results),
            "",
            *comparisons(results["runs"]),
            "",
            "![validation loss against tokens](results/conversion.png)",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(required=True)
    job = jobs.add_parser("run")
    job.add_argument("model", help="folder, Hub name or GGUF file of a LLaMA")
    job.add_argument("corpus", help="text file")
    job.add_argument("--model_about", required=True, help="what the model is, for readers")
    job.add_argument("--corpus_about", required=True, help="what the text is, for readers")
    job.add_argument("--folder", type=Path, default=ROOT / "runs" / "conversion")
    job.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each (default: %(default)s)")
    job.add_argument("--only", nargs="*", help="names of arms and variants")
    job.set_defaults(do=run_all)
    jobs.add_parser("render").set_defaults(do=None)
    given = parser.parse_args()
    if given.do is not None:
        given.do(given)
        return
    readme = Path(__file__).with_name("README.md")
    draw(json.loads(RESULTS.read_text()))
    pattern = re.compile(f"{MARKERS[0]}.*?{MARKERS[1]}", re.DOTALL)
    write_atomic(readme, pattern.sub(lambda _: f"{MARKERS[0]}\n{render()}\n{MARKERS[1]}", readme.read_text()))


if __name__ == "__main__":
    main()
