# SPDX-License-Identifier: Apache-2.0
"""The runs of the information study that train the norms alone: on a random base and on a pretrained one.

    python recipes/studies/information.py --out runs/information          # goes on where it was after any interruption
    ibnorm-hf analyze runs/information/llama-random-* --placebo --out DIR

LLaMA tiny and GPT-2 tiny, five norms, three seeds. A random base is drawn by the seed. The pretrained base is one a
host, the recipe trained whole with the host's own norm (RMSNorm, LayerNorm) by the first seed: there the seed is that
of the samples alone. Every norm is swapped in and trained alone for a hundred steps at the recipe's own rate. One rate
for all, tuned for none of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from ibnorm_hf.cli import main as command
from ibnorm_hf.common import strict_yaml
from ibnorm_hf.common.run import Run
from ibnorm_hf.training.keys.files import read_recipe

RECIPES = Path(__file__).resolve().parents[1]
HOSTS = {"llama": "rmsnorm", "gpt2": "layernorm"}
NORMS = ("rmsnorm", "layernorm", "ibnorm-l", "ibnorm-t", "ibnorm-s")
SEEDS = (1, 2, 3)
ALONE = ("--train_only", "norms", "--max_steps", "100", "--save_steps", "100")


def runs(out: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """(name, recipe, keys) of every run, a base before what stands on it, host after host and seed after seed."""
    for host, own in HOSTS.items():
        recipe, base = RECIPES / host / "tiny.yaml", f"{host}-base-{own}-{SEEDS[0]}"
        yield base, recipe, ["--norm_type", own, "--seed", str(SEEDS[0])]
        for seed in SEEDS:
            keys = {norm: ["--norm_type", norm, "--seed", str(seed), *ALONE] for norm in NORMS}
            for norm in NORMS:
                yield f"{host}-random-{norm}-{seed}", recipe, keys[norm]
            for norm in NORMS:
                started = ["--pretrained", str(out / base / "model")]
                yield f"{host}-pretrained-{norm}-{seed}", out / f"{host}.yaml", keys[norm] + started


def write_recipes(out: Path) -> None:
    """The recipes without the sizes, which a pretrained base brings along."""
    for host in HOSTS:
        recipe, _ = read_recipe(RECIPES / host / "tiny.yaml")
        # A tokenizer is the base's as well, so that both read the same blocks.
        kept = {key: value for key, value in recipe.items() if key not in ("model", "model_type", "tokenizer")}
        (out / f"{host}.yaml").write_text(strict_yaml.dumps(kept), encoding="utf-8")


def main() -> int:
    """Train what is not finished; a run that fails is named and left out.

    It goes on by ``pretrain`` itself and not by the executors of ``ibnorm-hf compare``: those keep the log of a run
    beside its folder, where a pattern of runs for ``analyze`` would find it, and drop the checkpoints of a base.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--max_steps", help="other than the recipe's, to try this out")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_recipes(out)
    steps = ["--max_steps", arguments.max_steps] if arguments.max_steps else []
    failed = []
    for name, recipe, keys in runs(out):
        if Run(out / name).is_finished:
            continue
        print(f"=== {name}", flush=True)
        code = command(["pretrain", str(recipe), *keys, *steps, "--use_cpu", "true", "--output_dir", str(out / name)])
        if code >= 128:
            return code
        if code:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all runs are finished")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
