# SPDX-License-Identifier: Apache-2.0
"""A long run in pieces beside one in one piece: is memory flat, and are the weights the same?

    nohup python recipes/benchmarks/soak.py --minutes 30 --json recipes/benchmarks/results/soak.json > soak.log 2>&1 &

Runs by itself and goes on after an interruption: start it again with the same --folder. First a few steps are timed to
choose how many fill the minutes. Then the recipe is trained twice, side by side, with one thread each: in four pieces
(one stopped by SIGTERM, one by SIGKILL, one by SIGTERM, and the rest), and without a stop. Resident memory is sampled
once a second; weights, moments, generators and log are compared bit for bit. Do not edit the package meanwhile: every
piece imports it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from stamp import stamped

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "llama" / "tiny.yaml"
STOPS = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)


def resident_mib(process: int) -> float:
    """Resident memory; 0 once the process is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(folder: Path, steps: int, *, stop: signal.Signals | None = None, stop_at: int = 0) -> dict[str, Any]:
    """Run the recipe, or a piece of it; returns the samples of its memory and how it ended."""
    command = [sys.executable, "-m", "ibnorm_hf.cli", "pretrain", str(RECIPE), "--output_dir", str(folder)]
    command += [
        "--max_steps",
        str(steps),
        "--save_steps",
        "200",
        "--save_total_limit",
        "1",
        "--eval_steps",
        "1000",
        "--logging_steps",
        "10",
    ]
    begin = time.monotonic()
    samples: list[tuple[float, float]] = []
    with open(folder.with_suffix(".log"), "a") as log:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=one_thread)
        while process.poll() is None:
            time.sleep(1)
            if size := resident_mib(process.pid):
                samples.append((round(time.monotonic() - begin, 1), round(size, 1)))
            if stop is not None and logged_step(folder) >= stop_at:
                process.send_signal(stop)
                stop = None
    return {"seconds": round(time.monotonic() - begin, 1), "exit_code": process.wait(), "samples": samples}


def logged_step(folder: Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0


def slope(samples: list[tuple[float, float]], skip_s: float) -> dict[str, Any]:
    """MiB an hour by least squares after ``skip_s`` seconds, with a 95 % interval.

    Neighbouring samples are not independent, so the interval is that of the means of twenty equal stretches.
    """
    kept = np.array([s for s in samples if s[0] >= skip_s])
    parts = [part for part in np.array_split(kept, 20) if len(part)]
    if len(parts) < 5:
        return {"mib_per_hour": None, "interval_95": None}
    x, y = np.array([p[:, 0].mean() for p in parts]), np.array([p[:, 1].mean() for p in parts])
    (value, _), covariance = np.polyfit(x, y, 1, cov=True)
    error = 1.96 * float(np.sqrt(covariance[0, 0]))
    return {
        "mib_per_hour": round(3600 * float(value), 2),
        "interval_95": [round(3600 * (float(value) + sign * error), 2) for sign in (-1, 1)],
        "median_mib": round(float(np.median(kept[:, 1])), 1),
        "peak_mib": round(float(kept[:, 1].max()), 1),
    }


def steps_for(folder: Path, seconds: float) -> int:
    """How many steps fill the time, from a short run of the same recipe."""
    train(folder, 150)
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_s"] for line in lines if "tokens_per_s" in line][2:]
    return int(float(np.median(speeds)) * seconds / 1024) // 100 * 100


def main() -> int:
    parser = argparse.ArgumentParser(description="Train for long, in pieces and in one, and compare.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    parser.add_argument("--json", type=Path, default=ROOT / "recipes" / "benchmarks" / "results" / "soak.json")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.faults.compare import unlike

    given.folder.mkdir(parents=True, exist_ok=True)
    state_file = given.folder / "soak-state.json"
    state: dict[str, Any] = json.loads(state_file.read_text()) if state_file.exists() else {"pieces": []}

    def keep() -> None:
        state_file.write_text(json.dumps(state))

    if "steps" not in state:
        state["steps"] = max(400, steps_for(given.folder / "timing", 60 * given.minutes))
        keep()
    steps = state["steps"]
    print(f"{steps} steps", flush=True)
    beside = ThreadPoolExecutor(1)
    whole = None if "whole" in state else beside.submit(train, given.folder / "whole", steps)
    while len(state["pieces"]) <= len(STOPS):
        number = len(state["pieces"])
        last = number == len(STOPS)
        at = steps * (number + 1) // (len(STOPS) + 1)
        piece = train(given.folder / "pieces", steps, stop=None if last else STOPS[number], stop_at=at)
        piece["ended_by"] = "the last step" if last else STOPS[number].name
        if piece["exit_code"] not in (0, -signal.SIGKILL, 128 + signal.SIGTERM):
            print(f"a piece failed; see {given.folder / 'pieces.log'}", file=sys.stderr)
            return 1
        state["pieces"].append(piece)
        keep()
        print(f"piece {number + 1}: {piece['ended_by']} (exit code {piece['exit_code']})", flush=True)
    if whole is not None:
        state["whole"] = whole.result()
        keep()
    found = unlike(given.folder / "whole", given.folder / "pieces") if state["whole"]["exit_code"] == 0 else ["no run"]
    result = judged(state, found, given.minutes)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    content = stamped("recipes/benchmarks/results/soak.json", result)
    given.json.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "whole"}, indent=2))
    print(json.dumps(result["whole"]["memory"]))
    return 0 if not found else 1


def judged(state: dict[str, Any], found: list[str], minutes: float) -> dict[str, Any]:
    """What the file says of the runs; ``found`` is in what the pieces differ from the whole."""
    # The first minute is imports, compilation of the kernel and allocation.
    return {
        "command": f"python recipes/benchmarks/soak.py --minutes {minutes:g}",
        "recipe": "recipes/llama/tiny.yaml",
        "cpu_cores": os.cpu_count(),
        "steps": state["steps"],
        "whole": {
            "minutes": round(state["whole"]["seconds"] / 60, 1),
            "memory": slope(state["whole"]["samples"], 60),
            "samples": state["whole"]["samples"][::10],
        },
        "pieces": [
            {
                "minutes": round(piece["seconds"] / 60, 1),
                "ended_by": piece["ended_by"],
                "exit_code": piece["exit_code"],
                "memory": slope(piece["samples"], 60),
            }
            for piece in state["pieces"]
        ],
        "resumed": len(STOPS),
        "differences": found,
        "equal_bit_for_bit": not found,
    }


if __name__ == "__main__":
    sys.exit(main())
