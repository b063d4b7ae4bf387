# SPDX-License-Identifier: Apache-2.0
"""Memory, speed and restarts of packing a large corpus: `ibnorm-hf prepare`, watched from outside.

    python recipes/benchmarks/prepare_memory.py CORPUS --about "what it is" --json FILE

Three preparations: one left alone, one killed half-way (SIGKILL) and started again, one that only finds what is there.
Memory is resident memory of the program and all its workers, sampled four times a second; what grows
with the corpus is the slope over the packing itself, from which a larger corpus is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from stamp import stamped

RECIPE = """
model_type: ibnorm_llama
model: {vocab_size: 8192, hidden_size: 128, num_attention_heads: 4, num_hidden_layers: 2, intermediate_size: 344}
block_size: 256
use_cpu: true
"""
LARGE = 1_300_000_000


def resident(process: int) -> int:
    """Bytes of a process and its children; 0 once it is gone."""
    total = 0
    for number in (process, *children(process)):
        try:
            pages = int(Path(f"/proc/{number}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


def children(process: int) -> list[int]:
    """Direct children."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def shards(cache: Path) -> list[Path]:
    """Packed training shards so far."""
    return sorted(cache.glob("blocks/*/train-*.arrow")) + sorted(cache.glob("blocks/.*/train-*.arrow"))


def prepare(words: list[str], cache: Path, *, kill_after_shards: int | None = None) -> dict[str, Any]:
    """Run one preparation and watch it."""
    environment = {**os.environ, "IBNORM_CACHE": str(cache)}
    command = [sys.executable, "-m", "ibnorm_hf.cli", "prepare", *words]
    begin = time.monotonic()
    samples, died = [], False
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        while process.poll() is None:
            done = len(shards(cache))
            samples.append((time.monotonic() - begin, resident(process.pid), done))
            if kill_after_shards is not None and done >= kill_after_shards:
                process.send_signal(signal.SIGKILL)
                died = True
                break
            time.sleep(0.25)
        status = process.wait()
        out.seek(0)
        text = out.read()
    if status and not died:
        raise SystemExit(f"preparation failed:\n{text}")
    return {"seconds": time.monotonic() - begin, "samples": samples, "text": text.splitlines()}


def description(cache: Path) -> dict[str, Any]:
    """The data.json of the only prepared corpus."""
    (path,) = cache.glob("blocks/*/data.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch the packing of a large corpus.")
    parser.add_argument("corpus")
    parser.add_argument("--about", required=True, help="what the corpus is, for the results")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE)
        words = [str(folder / "recipe.yaml"), "--corpus", given.corpus]
        if given.workers:
            words += ["--prepare_workers", str(given.workers)]
        whole = prepare(words, folder / "whole")
        again = prepare(words, folder / "whole")
        facts = description(folder / "whole")
        # The tokenizer is the same: copied, so that only packing is killed.
        (folder / "killed").mkdir()
        shutil.copytree(folder / "whole" / "tokenizers", folder / "killed" / "tokenizers")
        half = max(1, len(facts["train"]["shards"]) // 2)
        killed = prepare(words, folder / "killed", kill_after_shards=half)
        resumed = prepare(words, folder / "killed")
        same = [s["sha256"] for s in description(folder / "killed")["train"]["shards"]] == [
            s["sha256"] for s in facts["train"]["shards"]
        ]
    result = {
        "corpus": given.about,
        "command": "python recipes/benchmarks/prepare_memory.py CORPUS --about ...",
        "cpu_cores": os.cpu_count(),
        "vocabulary": 8192,
        "training_tokens": facts["train"]["tokens"],
        "shards": len(facts["train"]["shards"]),
        "plan_said": next((line for line in whole["text"] if "plan:" in line), None),
        **memory(whole["samples"], facts["train"]["tokens"]),
        "seconds": round(whole["seconds"], 1),
        "seconds_found_again": round(again["seconds"], 1),
        "seconds_until_killed": round(killed["seconds"], 1),
        "seconds_resumed": round(resumed["seconds"], 1),
        "resume_said": next((line for line in resumed["text"] if "resuming" in line), None),
        "killed_equals_whole": same,
    }
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        content = stamped("recipes/benchmarks/results/prepare.json", result)
        given.json.write_text(json.dumps(content, indent=2) + "\n")


def memory(samples: list[tuple[float, int, int]], tokens: int) -> dict[str, Any]:
    """Peak, and the growth while shards were written, extrapolated to a large corpus."""
    times, sizes, done = (np.array(column, float) for column in zip(*samples, strict=True))
    packing = done >= 1
    count = max(1.0, done[-1])
    x, y = times[packing], sizes[packing]
    rate = tokens / (times[-1] - times[done < 1][-1]) * (count - 1) / count if count > 1 else tokens / times[-1]
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    error = 1.96 * float(np.sqrt(covariance[0, 0]))
    grown = (slope + error) / rate * LARGE  # bytes at the upper end of the interval
    return {
        "peak_mib": round(sizes.max() / 2**20),
        "packing_mib": {"first": round(y[0] / 2**20), "median": round(float(np.median(y)) / 2**20)},
        "slope_mib_per_million_tokens": round(slope / rate * 1e6 / 2**20, 4),
        "slope_95_percent": [round((slope + sign * error) / rate * 1e6 / 2**20, 4) for sign in (-1, 1)],
        "tokens_per_s": round(rate),
        "extrapolated_to_tokens": LARGE,
        "extrapolated_peak_mib": round(max(sizes.max(), float(np.median(y)) + max(0.0, grown)) / 2**20),
        "extrapolated_hours": round(LARGE / rate / 3600, 2),
        "extrapolated_mb_on_disk": round(LARGE * 2 / 1e6),
    }


if __name__ == "__main__":
    main()
