# SPDX-License-Identifier: Apache-2.0
"""README's line a result, made from the files under results/.

    python recipes/benchmarks/headlines.py [--write]

Prints the table, or with --write puts it into the repository's README.md between the markers `<!-- results -->`.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
PAGE = "recipes/benchmarks/README.md"
START, END = "<!-- results -->", "<!-- /results -->"


def read(name: str) -> Any:
    """A results file: rows of a CSV, or what a JSON holds."""
    path = HERE / "results" / name
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def span(values: list[float]) -> str:
    """The least and the most."""
    return f"{min(values):.2f} to {max(values):.2f}"


def speed() -> str:
    """What a layer costs."""
    rows = read("norms-cpu.csv")

    def cost(layer: str) -> str:
        return span([float(row["over_layer_norm"]) for row in rows if row["layer"] == layer])

    return (
        f"`ibnorm-l`, forward and backward on CPU: {cost('ibnorm-l')} times `F.layer_norm` (`ibnorm-t` "
        f"{cost('ibnorm-t')}, plain torch {cost('ibnorm-l-eager')}); GPU: not measured"
    )


def step() -> str:
    """What a training step costs."""
    rows = [row for row in read("train_step-cpu.csv") if row["norm"] != "vanilla"]
    return f"{span([float(row['over_vanilla']) for row in rows])} times the vanilla class's, medians, on CPU"


def faults() -> str:
    """What disturbed runs lost."""
    kinds, kills = read("faults.json")["faults"], read("kills.json")
    counted = [kinds[kind] for kind in kinds if kind != "SIGKILL at a random moment"] + [kills]
    tried, lost = (sum(entry[key] for entry in counted) for key in ("tried", "lost"))
    return f"{lost} of {tried} faults and kills tried cost a run something"


def conversion() -> str:
    """What the swap costs a pretrained model, and what training gives back."""
    results = read("conversion.json")
    swap, kept = (results["runs"][arm]["validation"] for arm in ("direct swap", "control: norms kept"))
    return (
        f"not at a small lambda: {kept[0]['loss']:.2f} nats a token become {swap[0]['loss']:.2f}, and "
        f"{swap[-1]['loss']:.2f} after {swap[-1]['tokens']:,} tokens of training (control {kept[-1]['loss']:.2f}); "
        "one seed"
    )


QUESTIONS = {
    "What does a layer cost?": (speed, "speed"),
    "What does a training step cost?": (step, "speed"),
    "What does a disturbed run lose?": (faults, "faults"),
    "Does a pretrained model survive the swap?": (conversion, "converting-a-pretrained-model"),
}


def render() -> str:
    """The text between the markers."""
    lines = ["| question | in a line |", "|---|---|"]
    return "\n".join([*lines, *(f"| [{q}]({PAGE}#{anchor}) | {f()} |" for q, (f, anchor) in QUESTIONS.items())])


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    if not parser.parse_args().write:
        print(render())
        return
    before, rest = README.read_text().split(START)
    README.write_text(f"{before}{START}\n{render()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
