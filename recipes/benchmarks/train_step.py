# SPDX-License-Identifier: Apache-2.0
"""Time of a training step (forward, backward, AdamW): a model with our norms over the vanilla class.

    python recipes/benchmarks/train_step.py [--models llama-tiny llama-60m gpt2-tiny] [--modes eager compiled]

Both models are stepped in turn in one process; the ratio is taken round by round. Writes
results/train_step-{cpu,cuda}.csv.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from measure import interleave, quantiles, ratio, write_csv
from transformers import AutoConfig, AutoModelForCausalLM

import ibnorm_hf  # noqa: F401 (registers the model types)

RECIPES = Path(__file__).parents[1]
MODELS = {  # recipe, batch and length of a step that two cores finish in a second or two, and rounds
    "llama-tiny": ("llama/tiny.yaml", 8, 128, 100),
    "llama-60m": ("llama/60m.yaml", 2, 256, 20),
    "gpt2-tiny": ("gpt2/tiny.yaml", 8, 128, 100),
}


def step(model: torch.nn.Module, compiled: bool, bf16: bool, ids: torch.Tensor) -> Callable[[], None]:
    """A function that does one optimizer step on the same batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = torch.compile(model) if compiled else model

    def once() -> None:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return once


def benchmark(name: str, mode: str, dtype: str, norms: list[str], repeats: int | None) -> list[dict[str, object]]:
    """One CSV row a norm, for one model, mode (eager or compiled) and dtype (float32, or bfloat16 autocast)."""
    torch.compiler.reset()
    file, batch, length, rounds = MODELS[name]
    repeats = repeats or rounds
    recipe = yaml.safe_load((RECIPES / file).read_text())
    family = recipe["model_type"].removeprefix("ibnorm_")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(recipe["model"]["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0))
    jobs = {}
    for norm in ["vanilla", *norms]:
        flags = {} if norm == "vanilla" else {"norm_type": norm}
        config = AutoConfig.for_model(family if norm == "vanilla" else f"ibnorm_{family}", **recipe["model"], **flags)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(device).train()
        jobs[norm] = step(model, mode == "compiled", dtype == "bfloat16", ids.to(device))
    times = interleave(jobs, repeats, warmup=3, alternate=True)
    rows: list[dict[str, object]] = []
    for norm in jobs:
        low, median, high = ratio(times, norm, "vanilla")
        rows.append(
            {
                "model": name,
                "norm": norm,
                "mode": mode,
                "dtype": dtype,
                "batch": batch,
                "length": length,
                "step_ms": f"{quantiles(times[norm])[1] * 1e3:.1f}",
                "tokens_per_s": f"{batch * length / quantiles(times[norm])[1]:.0f}",
                "over_vanilla": f"{median:.3f}",
                "over_vanilla_q20": f"{low:.3f}",
                "over_vanilla_q80": f"{high:.3f}",
                "rounds": repeats,
            }
        )
        print("  ".join(f"{v:>10}" for v in list(rows[-1].values())), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--norms", nargs="+", default=["ibnorm-l"])
    parser.add_argument("--repeats", type=int, help="rounds (default: 100 of a tiny model, 20 of a larger one)")
    parser.add_argument("--threads", type=int, default=1, help="of one, CPU seconds are counted")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = arguments.out / f"train_step-{'cuda' if torch.cuda.is_available() else 'cpu'}.csv"
    rows: list[dict[str, object]] = []
    for name, mode, dtype in itertools.product(arguments.models, arguments.modes, arguments.dtypes):
        rows += benchmark(name, mode, dtype, arguments.norms, arguments.repeats)
        write_csv(path, rows)  # after each, so that a long run can be stopped


if __name__ == "__main__":
    main()
