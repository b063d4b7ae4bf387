# SPDX-License-Identifier: Apache-2.0
"""Ten arms on Fashion-MNIST: a small ResNet and a small ViT, each with its host norm, IBNorm-L, -T, -S and NormalNorm.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb .cache/fashion
    python recipes/benchmarks/fashion_mnist.py run .cache/fashion/usr/share/datasets/fashion-mnist
    python recipes/benchmarks/fashion_mnist.py render

`run` does the runs that `model_cards/fashion_mnist.json` does not hold yet, one after the other, and can be stopped at
any time. Every arm's learning rate is the best of the same three on one seed, judged on images held out from the
training set; that seed is not used again, and the test set is only looked at with three other seeds. `render` writes
the table to `model_cards/fashion_mnist.md` and between the markers of README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from stamp import stamped
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification

import ibnorm_hf  # registers the model types
from ibnorm_hf.common.paths import write_atomic, write_json
from ibnorm_hf.evaluation.classification import evaluate_images, predict, scores
from ibnorm_hf.training.folder.run_folder import hardware
from ibnorm_hf.training.images.augment import channel_moments, normalize, random_crop, random_flip
from ibnorm_hf.training.images.images import ImageData, Images, load_idx
from ibnorm_hf.training.loop.decay import decay_groups
from ibnorm_hf.training.loop.order import SampleOrder

ROOT = Path(__file__).resolve().parents[2]
RESULTS, CARD = ROOT / "model_cards" / "fashion_mnist.json", ROOT / "model_cards" / "fashion_mnist.md"
MARKERS = ("<!-- fashion-mnist -->", "<!-- /fashion-mnist -->")

NORMS = ("ibnorm-l", "ibnorm-t", "ibnorm-s", "normalnorm")
ARMS = [("resnet", norm) for norm in ("batchnorm", *NORMS)] + [("vit", norm) for norm in ("layernorm", *NORMS)]
RATES = (1e-3, 3e-3, 1e-2)
SEARCH_SEED, SEEDS = 0, (1, 2, 3)
TRAINING_IMAGES, HELD_OUT, STEPS, BATCH, WARMUP, DECAY = 10_000, 5_000, 400, 64, 40, 0.05
LIMIT_S = 90
SIZES: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"},
    "vit": {
        "image_size": 28,
        "patch_size": 7,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.1,  # at the usual 0.02, 400 steps leave every ViT near 69 %
    },
}
SETTING = {
    "training_images": TRAINING_IMAGES,
    "held_out_images": HELD_OUT,
    "steps": STEPS,
    "batch": BATCH,
    "warmup_steps": WARMUP,
    "weight_decay": DECAY,
    "learning_rates": list(RATES),
    "search_seed": SEARCH_SEED,
    "seeds": list(SEEDS),
    "sizes": SIZES,
}


def subset(data: ImageData) -> tuple[Images, Images]:
    """The training images of every run, and the images that choose learning rates: disjoint, the same for all arms."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    return data.train.select(order[:TRAINING_IMAGES]), data.train.select(order[-HELD_OUT:])


def build(architecture: str, norm: str, seed: int) -> Any:
    """A fresh model; the seed alone decides its weights, so that arms differ in nothing but the norm."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        f"ibnorm_{architecture}", norm_type=norm, num_channels=1, num_labels=10, **SIZES[architecture]
    )
    return AutoModelForImageClassification.from_config(config)


def train(model: Any, images: Images, prepare: Any, rate: float, seed: int) -> None:
    """AdamW, linear warm-up and cosine to 0, gradients clipped at 1, random crops (padding 2) and flips."""
    names = set(decay_groups(model).decay)
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": DECAY}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        groups[0 if name in names else 1]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=rate)
    order = SampleOrder(len(images), seed=seed, steps=STEPS, batch=BATCH)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # NormalNorm's noise
    model.train()
    for step in range(1, STEPS + 1):
        where = torch.tensor(order.ids(step))
        batch = random_flip(random_crop(images.pixels[where], 2, generator), generator)
        loss = F.cross_entropy(model(pixel_values=prepare(batch)).logits, images.labels[where])
        warm = step / WARMUP
        for group in optimizer.param_groups:
            group["lr"] = rate * min(warm, 0.5 * (1 + math.cos(math.pi * max(0.0, (step - WARMUP) / (STEPS - WARMUP)))))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def one_run(data: ImageData, architecture: str, norm: str, rate: float, seed: int) -> dict[str, Any]:
    """Train one arm; a search run is scored on the held-out images, any other on the test set, corrupted as well."""
    images, held_out = subset(data)
    mean, std = channel_moments(images.pixels)

    def prepare(values: torch.Tensor) -> torch.Tensor:
        return normalize(values, mean, std)

    began, cpu = time.perf_counter(), time.process_time()
    model = build(architecture, norm, seed)
    train(model, images, prepare, rate, seed)
    seconds = time.perf_counter() - began
    record = {"model": architecture, "norm": norm, "learning_rate": rate, "seed": seed, "train_s": round(seconds, 1)}
    record["parameters"] = model.num_parameters()
    if seed == SEARCH_SEED:
        record["held_out"] = scores(*predict(model, held_out, prepare))
    else:
        record["test"] = evaluate_images(model, data.validation, prepare, severities=(3,))
    record["run_s"] = round(time.perf_counter() - began, 1)
    record["cpu_s"] = round(time.process_time() - cpu, 1)  # apart from run_s where the machine has other work
    return record


def best_rate(runs: list[dict[str, Any]], architecture: str, norm: str) -> float | None:
    """The learning rate of highest held-out accuracy, the lower loss deciding a tie; None before all are tried."""
    tried = [r for r in runs if (r["model"], r["norm"], r["seed"]) == (architecture, norm, SEARCH_SEED)]
    if {r["learning_rate"] for r in tried} != set(RATES):
        return None

    def merit(r: dict[str, Any]) -> tuple[float, float]:
        loss = r["held_out"]["loss"]
        return r["held_out"]["top1"], -math.inf if loss is None else -loss

    best = max(tried, key=merit)
    return float(best["learning_rate"])


def missing(runs: list[dict[str, Any]]) -> list[tuple[str, str, float, int]]:
    """What is to be run next: the searches first, then the seeds of the arms whose rate is known."""
    done = {(r["model"], r["norm"], r["learning_rate"], r["seed"]) for r in runs}
    wanted = [(*arm, rate, SEARCH_SEED) for arm in ARMS for rate in RATES]
    for seed in SEEDS:
        for arm in ARMS:
            if (rate := best_rate(runs, *arm)) is not None:
                wanted.append((*arm, rate, seed))
    return [w for w in wanted if w not in done]


def read(path: Path = RESULTS) -> dict[str, Any]:
    """The results file, or an empty one for the present setting; refuses one of another setting."""
    if not path.is_file():
        return {"setting": SETTING, "runs": []}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["setting"] != SETTING:
        sys.exit(f"error: {path} was measured with other settings; move it away")
    return content


def finite(value: Any) -> Any:
    """JSON knows no nan: a diverged run has null there."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(folder: str, limit: int | None = None) -> None:
    """Do what is missing, at most ``limit`` runs."""
    torch.set_num_threads(1)
    data, content = load_idx(folder), read()
    content["hardware"], content["torch"] = hardware(), torch.__version__
    content["ibnorm_hf"] = ibnorm_hf.__version__
    count = 0
    while (todo := missing(content["runs"])) and (limit is None or count < limit):
        record = finite(one_run(data, *todo[0]))
        content["runs"].append(record)
        content = stamped("model_cards/fashion_mnist.json", content)
        write_json(RESULTS, content)
        score = record.get("held_out") or record["test"]["clean"]
        late = f"  over the limit of {LIMIT_S} s" if record["run_s"] > LIMIT_S else ""
        line = f"top-1 {score['top1']:.4f}  {record['run_s']} s  {len(todo) - 1} known runs left{late}"
        print(*todo[0], line, flush=True)
        count += 1


def _mean_and_spread(values: list[float], scale: float = 100.0) -> str:
    return f"{scale * statistics.mean(values):.2f} ± {scale * statistics.stdev(values):.2f}"


def table(content: dict[str, Any]) -> str:
    """The markdown table and what is needed to judge it: mean and standard deviation over three seeds."""
    runs = content["runs"]
    lines = [
        "| model | norm | lr | test top-1 | calibration error | noise | blur | contrast | CPU s a run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for architecture, norm in ARMS:
        mine = [r for r in runs if (r["model"], r["norm"]) == (architecture, norm) and r["seed"] in SEEDS]
        if len(mine) != len(SEEDS):
            sys.exit(f"error: {architecture} {norm} has {len(mine)} of {len(SEEDS)} runs; run the rest first")
        tests = [r["test"] for r in mine]
        cells = [architecture, f"`{norm}`", f"{mine[0]['learning_rate']:g}"]
        cells.append(_mean_and_spread([t["clean"]["top1"] for t in tests]))
        cells.append(_mean_and_spread([t["clean"]["calibration_error"] for t in tests]))
        for corruption in ("noise", "blur", "contrast"):
            cells.append(_mean_and_spread([t["corrupted"][corruption]["3"]["top1"] for t in tests]))
        cells.append(f"{statistics.mean(r['cpu_s'] for r in mine):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def text(content: dict[str, Any]) -> str:
    """What stands between the markers: setting, table, limits."""
    machine = content["hardware"]
    counts = {r["model"]: r["parameters"] for r in content["runs"]}
    longest = max(r["cpu_s"] for r in content["runs"] if "cpu_s" in r)
    late = sum(r["run_s"] > LIMIT_S for r in content["runs"])
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    ends = [arm for arm in ARMS if best_rate(content["runs"], *arm) in (RATES[0], RATES[-1])]
    edge = ", ".join(f"{architecture} `{norm}`" for architecture, norm in ends)
    them = "it" if len(ends) == 1 else "them"
    return "\n".join(
        [
            f"Fashion-MNIST, {TRAINING_IMAGES:,} of its 60,000 training images, {STEPS} steps of {BATCH}, all 10,000 "
            f"test images; a ResNet of {counts['resnet']:,} parameters and a ViT of {counts['vit']:,}. Percent, mean ± "
            f"standard deviation over seeds {', '.join(map(str, SEEDS))}; corruptions at severity 3 of 5. The learning "
            f"rate is the best of {rates} for each arm on seed {SEARCH_SEED}, by {HELD_OUT:,} held-out images. "
            f"One thread on {machine['cpu_cores']} {machine['machine']} cores, at most {longest:.0f} CPU s a run.",
            "",
            table(content),
            "",
            *(
                [
                    f"Of the {len(content['runs'])} runs, {late} took more than {LIMIT_S} s by the clock, because the "
                    "machine had other work; CPU seconds are without it.",
                    "",
                ]
                if late
                else []
            ),
            *([f"The chosen rate is an end of the grid for {edge}: a wider grid may help {them}.", ""] if edge else []),
            "Short runs of small networks on one data set, with three seeds: differences within two standard "
            "deviations are not findings, and nothing follows for ImageNet. Every run is in "
            "[fashion_mnist.json](model_cards/fashion_mnist.json).",
        ]
    )


def card(content: dict[str, Any]) -> str:
    """The page of model_cards/."""
    body = text(content).replace("(model_cards/fashion_mnist.json)", "(fashion_mnist.json)")
    how = "`python recipes/benchmarks/fashion_mnist.py run FOLDER`, then `render`."
    return f"# Norms on Fashion-MNIST\n\n{how}\n\n{body}\n"


def render() -> None:
    """Write the card, and the README's block if its markers are there."""
    content = read()
    write_atomic(CARD, card(content))
    readme = ROOT / "README.md"
    page = readme.read_text(encoding="utf-8")
    if all(marker in page for marker in MARKERS):
        before, rest = page.split(MARKERS[0])
        after = rest.split(MARKERS[1])[1]
        write_atomic(readme, f"{before}{MARKERS[0]}\n{text(content)}\n{MARKERS[1]}{after}")
    print(table(content))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(required=True, dest="job")
    runs = jobs.add_parser("run", help="do the runs that are missing")
    runs.add_argument("folder", help="the four IDX files")
    runs.add_argument("--limit", type=int, help="stop after this many")
    jobs.add_parser("render", help="write the card and the README's block")
    arguments = parser.parse_args()
    run(arguments.folder, arguments.limit) if arguments.job == "run" else render()


if __name__ == "__main__":
    main()
