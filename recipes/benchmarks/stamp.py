# SPDX-License-Identifier: Apache-2.0
"""When, where and with which code a result was measured, and which results are older than that code.

    python recipes/benchmarks/stamp.py        # a line a results file; CI prints it

A JSON results file has the stamp under ``stamp``, a CSV file beside it in ``NAME.stamp.json``.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = "recipes/benchmarks"
PACKAGES = ("ibnorm_hf", "torch", "transformers", "accelerate", "datasets", "numpy")
_CODE = (".py", ".yaml")
KEYS = ("ibnorm_hf", "commit", "versions", "hardware", "command", "date", "code", "code_sha256")
# Results file -> the code that it measures: files and folders, from the root of the repository.
RESULTS: dict[str, tuple[str, ...]] = {
    f"{HERE}/results/norms-cpu.csv": ("ibnorm_hf/modeling", f"{HERE}/norms.py", f"{HERE}/measure.py"),
    f"{HERE}/results/train_step-cpu.csv": ("ibnorm_hf/modeling", f"{HERE}/train_step.py", f"{HERE}/measure.py"),
    f"{HERE}/results/loop-cpu.csv": ("ibnorm_hf/modeling", "ibnorm_hf/training", f"{HERE}/loop.py"),
    f"{HERE}/results/architectures.csv": ("ibnorm_hf/modeling", "tests/modeling/architectures.py"),
    f"{HERE}/results/conversion.json": (
        "ibnorm_hf/modeling",
        "ibnorm_hf/training",
        "recipes/finetune",
        f"{HERE}/conversion.py",
    ),
    f"{HERE}/results/faults.json": ("ibnorm_hf/training", "tests/faults"),
    f"{HERE}/results/kills.json": ("ibnorm_hf/training", "tests/faults"),
    f"{HERE}/results/study_kills.json": (
        "ibnorm_hf/studies",
        "ibnorm_hf/training",
        "tests/studies/kills.py",
        "tests/slurm.py",
    ),
    f"{HERE}/results/soak.json": ("ibnorm_hf/training", "ibnorm_hf/modeling", f"{HERE}/soak.py"),
    f"{HERE}/results/prepare.json": ("ibnorm_hf/training/text", f"{HERE}/prepare_memory.py"),
}


def stamp(result: str) -> dict[str, Any]:
    """What belongs beside a result measured now.

    Args:
        result: its path from the root of the repository, a key of ``RESULTS``.
    """
    from ibnorm_hf.training.folder.run_folder import hardware

    code = RESULTS[result.replace("-cuda.", "-cpu.").replace("/checks-", "/norms-")]  # of one kernel: right, and fast
    return {
        "ibnorm_hf": _version("ibnorm_hf"),
        "commit": commit(),
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
        "hardware": {"processor": processor(), **hardware()},
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "code": list(code),
        "code_sha256": code_sha256(code),
    }


def stamped(result: str, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON results file with a stamp of now; ``commits`` names all whose runs are in it."""
    now, before = stamp(result), content.get("stamp", {})
    commits = [*before.get("commits", filter(None, [before.get("commit")])), now["commit"]]
    return {**content, "stamp": {**now, "commits": list(dict.fromkeys(commits))}}


def beside(path: Path) -> Path:
    """Where the stamp of a CSV file is."""
    return path.with_name(f"{path.name}.stamp.json")


def write_beside(path: Path) -> None:
    """Write the stamp of a CSV file of ``results/``, wherever it is written."""
    result = f"{HERE}/results/{path.name}"
    beside(path).write_text(json.dumps(stamp(result), indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """The stamp of a results file; empty where it has none."""
    place = path if path.suffix == ".json" else beside(path)
    content = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return content.get("stamp", {}) if path.suffix == ".json" else content


def commit() -> str | None:
    """Commit of this checkout, with ``-dirty`` where tracked files other than results differ; None outside of git."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    others = [".", f":(exclude){HERE}/results"]  # one measurement after another makes results, and changes no code
    return head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no", "--", *others) else "")


def code_sha256(places: tuple[str, ...] | list[str], root: Path | None = None) -> str:
    """Digest over names and contents of the Python and YAML files below ``places``; what is not there is skipped."""
    root, checksum = root or ROOT, hashlib.sha256()
    for place in sorted(places):
        path = root / place
        files = sorted(p for p in path.rglob("*") if p.suffix in _CODE) if path.is_dir() else [path]
        for file in (f for f in files if f.is_file()):
            checksum.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return checksum.hexdigest()


def age(result: str, root: Path = ROOT) -> str | None:
    """In what a result is older than the code that it measures; None where it is not.

    Raises:
        KeyError: its stamp lacks an entry.
    """
    found = read(root / result)
    if found["code_sha256"] == code_sha256(found["code"], root):
        return None
    known = str(found["commit"]).removesuffix("-dirty")
    files = [p if Path(p).suffix else f"{p}/*{suffix}" for p in found["code"] for suffix in _CODE]
    count = _git("rev-list", "--count", f"{known}..HEAD", "--", *files, root=root)
    since = {None: "its commit is not in this history", "0": "changes that are not committed"}
    return f"older than its code: {since.get(count, f'{count} commits since changed it')}"


def report(root: Path = ROOT) -> list[str]:
    """A line a results file."""
    lines = []
    for result in RESULTS:
        found = read(root / result)
        missing = [key for key in KEYS if key not in found]
        if missing:
            lines.append(f"{result}: no {', '.join(missing)}")
            continue
        state = age(result, root) or "of the present code"
        lines.append(f"{result}: {found['date']}, commit {str(found['commit'])[:12]}, {state}")
    return lines


def processor() -> str:
    """Name of the processor, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str, root: Path | None = None) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root or ROOT), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    print("\n".join(report()))
