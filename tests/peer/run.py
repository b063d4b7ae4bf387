# SPDX-License-Identifier: Apache-2.0
"""Run the suite on one arm (vanilla or ours) in a process of its own, and read what became of each test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .suite.architectures import ARCHITECTURES

LIMIT_S = 1200


@dataclass(frozen=True)
class Outcome:
    test: str
    subtest: str
    outcome: str
    reason: str
    seconds: float

    @property
    def name(self) -> str:
        """The test without its class, which is the same in both arms, and without our prefix in a subtest."""
        return neutral(f"{self.test.partition('::')[2]} {self.subtest}".strip())


def neutral(text: str) -> str:
    """Text of either arm in the same words: without our prefix, our model types and the modules classes are in."""
    text = re.sub(r"<class '[\w.]+\.(\w+)'>", r"<class '\1'>", text)
    return re.sub(r"IBNorm(?=[A-Z])|ibnorm_(?=[a-z])", "", text)


class Results:
    """What one arm did on one architecture."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes

    def named(self, outcome: str) -> Counter[str]:
        """Tests, not counting subtests, that came to this outcome."""
        return Counter(o.name for o in self.outcomes if o.outcome == outcome and not o.subtest)

    def names(self) -> Counter[str]:
        return Counter(o.name for o in self.outcomes if not o.subtest)

    def skips(self) -> Counter[tuple[str, str]]:
        return Counter((o.name, neutral(o.reason)) for o in self.outcomes if o.outcome == "skipped")

    def failures(self) -> str:
        return "\n".join(f"{o.name}\n{o.reason[-3000:]}\n" for o in self.outcomes if o.outcome == "failed")

    def __str__(self) -> str:
        counts = [f"{self.named(outcome).total()} {outcome}" for outcome in ("passed", "failed", "skipped")]
        seconds = sum(o.seconds for o in self.outcomes if not o.subtest)
        return ", ".join(counts) + (f" in {seconds:.0f} s" if seconds else "")  # a record has no seconds


def start(work: Path, arm: str, architectures: list[str], flags: dict[str, object]) -> subprocess.Popen[bytes]:
    # RUN_SLOW and its like would change what is run; PYTEST_ADDOPTS is meant for the outer run.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RUN_", "PYTEST_"))}
    environment |= {
        "PEER_ARM": arm,
        "PEER_ARCHITECTURES": ",".join(architectures),
        "PEER_CONFIG_FLAGS": json.dumps(flags),
        "PEER_OUTCOMES": str(work / f"{arm}.json"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HF_HUB_OFFLINE": "1",  # no test may quietly depend on a network
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),  # two arms at a time
    }
    (work / "pytest.ini").write_text("[pytest]\n")  # keeps pytest from looking for a configuration further up
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini", "--disable-warnings"]
    command.append("tests/peer/peer_models.py")
    with open(work / f"{arm}.log", "wb") as log:
        return subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], work: Path, arm: str) -> dict[str, Results]:
    try:
        code = process.wait(LIMIT_S)
    finally:
        process.kill()
    if code not in (0, 1):  # 0 and 1: the tests ran; anything else: they did not
        raise RuntimeError(f"pytest ended with {code}:\n" + (work / f"{arm}.log").read_text()[-5000:])
    outcomes = [Outcome(**record) for record in json.loads((work / f"{arm}.json").read_text())]
    return {
        name: Results([o for o in outcomes if o.test.startswith(architecture.class_name + "::")])
        for name, architecture in ARCHITECTURES.items()
    }
