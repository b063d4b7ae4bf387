# SPDX-License-Identifier: Apache-2.0
"""What the suite did on vanilla models, kept: it says the same again as long as nothing that it depends on changes.

``python -m tests.peer.vanilla`` makes vanilla.json anew. A record of other versions, of another machine's kind or of
other testers of ours is not used: vanilla is run beside ours then.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from . import run, source
from .suite.architectures import ARCHITECTURES

RECORD = Path(__file__).parent / "vanilla.json"
_PACKAGES = ("transformers", "torch", "accelerate", "datasets", "numpy", "pytest", "safetensors", "tokenizers")


def depends_on() -> dict[str, str]:
    """All that decides what vanilla models pass and skip."""
    ours = hashlib.sha256()
    for path in sorted([*(source.HERE / "suite").glob("*.py"), *(source.HERE / "stubs").glob("*.py")]):
        ours.update(path.read_bytes())
    return {
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "archive": source.PINNED.get(transformers.__version__, "not pinned"),
        "testers": ours.hexdigest(),
        "python": platform.python_version().rpartition(".")[0],
        "system": platform.system(),
        "accelerators": str(torch.accelerator.device_count()),
    }


def recorded() -> dict[str, run.Results] | None:
    """The record by architecture; None where it was made of anything else than what is here."""
    content = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if content.get("depends_on") != depends_on():
        return None
    outcomes: dict[str, list[run.Outcome]] = {name: [] for name in ARCHITECTURES}
    for architecture, outcome, reason, *tests in content["outcomes"]:
        for test, subtest in tests:
            outcomes[architecture].append(run.Outcome(test, subtest, outcome, reason, 0.0))
    return {name: run.Results(of_one) for name, of_one in outcomes.items()}


def write(results: dict[str, run.Results]) -> None:
    """Keep what was run just now, without subtests that passed; tests of one outcome and one reason are one line."""
    grouped: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for architecture, of_one in results.items():
        if failures := of_one.failures():
            raise SystemExit(f"vanilla {architecture} fails; nothing is written.\n{failures}")
        for outcome in (o for o in of_one.outcomes if o.outcome != "passed" or not o.subtest):
            grouped.setdefault((architecture, outcome.outcome, outcome.reason), []).append(
                (outcome.test, outcome.subtest)
            )
    lines = ",\n  ".join(json.dumps([*key, *sorted(tests)]) for key, tests in sorted(grouped.items()))
    command = '"command": "python -m tests.peer.vanilla"'
    RECORD.write_text(f'{{"depends_on": {json.dumps(depends_on())},\n {command},\n "outcomes": [\n  {lines}\n ]}}\n')


def main() -> None:
    version = transformers.__version__
    with tempfile.TemporaryDirectory() as folder:
        work = source.unpack(source.fetch(version), version, Path(folder) / "vanilla")
        write(run.finish(run.start(work, "vanilla", list(ARCHITECTURES), {}), work, "vanilla"))
    print(f"{RECORD.name}: {sum(len(r.outcomes) for r in (recorded() or {}).values())} outcomes", file=sys.stderr)


if __name__ == "__main__":
    main()
