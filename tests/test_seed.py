# SPDX-License-Identifier: Apache-2.0
"""A red session can be repeated: its seed is printed, and the same seed draws the same examples and kills."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRAWS = """
from hypothesis import given, strategies as st

drawn = []

@given(st.integers())
def test_drawing(number):
    drawn.append(number)

def test_failing(session_seed):
    assert False, f"drawn {session_seed} {drawn}"
"""


def test_the_seed_of_a_failure_is_printed_and_taken_back(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(DRAWS)

    def session(seed: str | None) -> tuple[str, str]:
        environment = {k: v for k, v in os.environ.items() if k != "IBNORM_TEST_SEED" and not k.startswith("PYTEST")}
        environment |= {} if seed is None else {"IBNORM_TEST_SEED": seed}
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        return re.findall(r"IBNORM_TEST_SEED=(\d+)", done.stdout)[-1], re.search(r"drawn \d+ \[.*", done.stdout).group()

    seed, drawn = session(None)
    assert f"drawn {seed} " in drawn
    assert session(seed) == (seed, drawn)
    assert session("7")[1] != drawn
