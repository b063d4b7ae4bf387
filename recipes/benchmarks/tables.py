# SPDX-License-Identifier: Apache-2.0
"""The performance tables of README.md beside this file, made from the CSV files under results/.

    python recipes/benchmarks/tables.py [--write]

Prints them, or with --write puts them into README.md between the markers `<!-- performance -->`.
"""

import argparse
import csv
import re
from pathlib import Path

from measure import quantiles

HERE = Path(__file__).parent
README = HERE / "README.md"
START, END = "<!-- performance -->", "<!-- /performance -->"
LAYERS = ("F.layer_norm", "LlamaRMSNorm", "ibnorm-l", "ibnorm-t", "ibnorm-s", "ibnorm-l-eager", "ibnorm-l-compiled")


def read(name: str) -> list[dict[str, str]]:
    """The rows of a results file."""
    with (HERE / "results" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def norm_table(rows: list[dict[str, str]]) -> str:
    """Forward and backward of a layer, in multiples of F.layer_norm; one column a shape and dtype."""
    cases = list(dict.fromkeys((r["rows"], r["width"], r["dtype"]) for r in rows))
    found = {(r["layer"], r["rows"], r["width"], r["dtype"]): r for r in rows}

    def numbers(layer: str, column: str) -> list[float]:
        return [float(found[(layer, *case)][column]) for case in cases]

    saved = zip(numbers("ibnorm-l", "saved_mb"), numbers("F.layer_norm", "saved_mb"), strict=True)
    measured = [layer for layer in LAYERS if all((layer, *case) in found for case in cases)]
    body = [[layer, *(f"{n:.2f}" for n in numbers(layer, "over_layer_norm"))] for layer in measured]
    body += [
        ["F.layer_norm, ms", *(f"{n:.1f}" for n in numbers("F.layer_norm", "both_ms"))],
        [
            "ibnorm-l forward, % of copy bandwidth",
            *(f"{n:.0f}" for n in numbers("ibnorm-l", "forward_percent_of_copy")),
        ],
        ["ibnorm-l saved / layer_norm saved", *(f"{ours / native:.3f}" for ours, native in saved)],
    ]
    return markdown(["layer", *(f"{a} x {b} {c}" for a, b, c in cases)], body)


def step_table(rows: list[dict[str, str]]) -> str:
    """A training step over the vanilla class: median and 20-80 % of the ratio."""
    cases = list(dict.fromkeys((r["mode"], r["dtype"]) for r in rows))
    found = {(r["model"], r["norm"], r["mode"], r["dtype"]): r for r in rows}
    header = ["step over vanilla", *(f"{mode} {dtype}" for mode, dtype in cases)]
    body = []
    for model, norm in dict.fromkeys((r["model"], r["norm"]) for r in rows if r["norm"] != "vanilla"):
        row = [f"{model}, {norm}"]
        for case in cases:
            r = found.get((model, norm, *case))
            cell = "not measured"
            if r:
                low, median, high = (float(r[k]) for k in ("over_vanilla_q20", "over_vanilla", "over_vanilla_q80"))
                cell = f"{median:.2f} ({low:.2f}-{high:.2f})"
            row.append(cell)
        body.append(row)
    return markdown(header, body)


def loop_line(rows: list[dict[str, str]]) -> str:
    """What a whole run keeps of a bare loop's speed: median and 20-80 % of the blocks."""
    low, median, high = quantiles([float(r["run_over_bare"]) for r in rows])
    first = rows[0]
    return "\n".join(
        [
            f"`{first['recipe']}` as a whole run does {median:.2f} ({low:.2f}-{high:.2f}) of the tokens/s of a bare",
            f"torch loop; one process, step by step in turn, {len(rows)} blocks of 10 steps, {first['threads']} thread",
            "on a machine with other work (`python recipes/benchmarks/loop.py`).",
        ]
    )


def render() -> str:
    """The text between the markers."""
    norms, steps = read("norms-cpu.csv"), read("train_step-cpu.csv")
    where = norms[0]
    return "\n".join(
        [
            f"Forward and backward of one layer on {where['device']}, threads: {where['threads']}, torch",
            f"{where['torch']}, {where['date']}: medians of interleaved rounds, in multiples of `F.layer_norm`; of a",
            "single thread, CPU seconds are counted, which other work on the machine moves little",
            "(`python recipes/benchmarks/norms.py`; all peers and bytes: `recipes/benchmarks/results/norms-cpu.csv`).",
            "`-eager` is plain torch, `-compiled` (where measured) torch.compile of the module.",
            "",
            norm_table(norms),
            "",
            "A training step with our norms over the vanilla class: median and 20-80 % of the ratio of each round",
            "(`python recipes/benchmarks/train_step.py`). GPU: not measured.",
            "",
            step_table(steps),
            "",
            loop_line(read("loop-cpu.csv")),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    text = render()
    if parser.parse_args().write:
        pattern = re.compile(f"{START}.*?{END}", re.DOTALL)
        README.write_text(pattern.sub(lambda _: f"{START}\n{text}\n{END}", README.read_text()))
    else:
        print(text)


if __name__ == "__main__":
    main()
