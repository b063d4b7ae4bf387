# SPDX-License-Identifier: Apache-2.0
"""Golden losses: twenty steps of the tiny recipes on the licence text, on one CPU thread in fp32.

A change that is not meant to be numerical must leave them as they are. To write them anew:

    python -m tests.convergence.golden --write            # all of them
    python -m tests.convergence.golden --write qwen3-tiny  # that of a new family
"""

import argparse
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import torch

from ibnorm_hf.training.job import pretrain
from ibnorm_hf.training.keys.recipe import load_recipe

from ..hosts import CAUSAL, recipes

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "golden"
RECIPES = {name.replace("/", "-"): f"recipes/{name}.yaml" for name in recipes(CAUSAL) if name.endswith("/tiny")}
STEPS = 20


def measure(name: str, folder: Path) -> dict:
    """Train and return the losses of every step, and the validation loss after the last."""
    keys = {
        # The licence is the one text that every checkout shares; the embedded corpus follows installed versions.
        "corpus": ROOT / "LICENSE",
        "validation_fraction": 0.1,
        "block_size": 64,
        "validation_tokens": 512,
        "max_steps": STEPS,
        "warmup_steps": 4,
        "logging_steps": 1,
        "eval_steps": STEPS,
        "save_strategy": "no",
        "output_dir": folder / name,
        "use_cpu": "true",
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = pretrain(load_recipe(ROOT / RECIPES[name], words))
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return {
        "recipe": RECIPES[name],
        "losses": [line["loss"] for line in lines if "loss" in line],
        "validation_loss": result.validation["loss"],
        "written_with": {package: metadata.version(package) for package in ("torch", "transformers", "tokenizers")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", nargs="*", required=True, metavar="NAME", help="replace these, or all golden files")
    names = parser.parse_args().write
    FOLDER.mkdir(exist_ok=True)
    for name in names or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            content = measure(name, Path(folder))
        (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
