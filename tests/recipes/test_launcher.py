# SPDX-License-Identifier: Apache-2.0
"""Under a user's own launcher the last thing to read is our sentence, and not the launcher's traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.conftest import TINY

RECIPES = Path(__file__).parents[2] / "recipes"
ACCELERATE = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", f"{RECIPES}/accelerate/cpu.yaml"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# Called as accelerate's own file is: it ends with a traceback where its program failed, and imports nothing.
LIKE_ACCELERATE = """import subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True)
"""
WRONG = {
    "a bad key": (["pretrain.py", "llama/tiny", "--lerning_rate", "1"], "did you mean 'learning_rate'?"),
    "no recipe": (["pretrain.py"], "the following arguments are required: recipe"),
    "images": (["train_vision.py", "vit/tiny", "--images", "absent"], "absent"),
    "no weights": (["finetune.py", "llama/tiny"], "key pretrained is missing"),
}


def start(launcher: list[str], words: list[str], folder: Path) -> subprocess.Popen:
    command = [sys.executable, *launcher, str(RECIPES / words[0]), *words[1:]]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "IBNORM_CACHE": str(folder)}
    environment = {k: v for k, v in environment.items() if k not in ("ACCELERATE_MIXED_PRECISION", "LOCAL_RANK")}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def last_line(text: str) -> str:
    return [line for line in text.splitlines() if line.strip()][-1]


@pytest.mark.parametrize("case", ["a bad key", "images", "no weights"])  # one of each file that is launched
def test_the_sentence_is_below_the_traceback_of_a_launcher(case: str, tmp_path: Path):
    path = tmp_path / "accelerate" / "commands" / "launch.py"
    path.parent.mkdir(parents=True)
    path.write_text(LIKE_ACCELERATE)
    is_below(case, [str(path)], tmp_path)


def test_the_sentence_is_below_the_traceback_of_accelerate(tmp_path: Path):
    is_below("no recipe", ACCELERATE, tmp_path)


def is_below(case: str, launcher: list[str], tmp_path: Path) -> None:
    words, sentence = WRONG[case]
    process = start(launcher, words, tmp_path)
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and "Traceback" in out  # accelerate's own, or this test shows nothing
    assert "error: " in last_line(out) and sentence in last_line(out)


def test_processes_of_one_launcher_have_one_last_word(tmp_path: Path):
    process = start(TORCHRUN, WRONG["a bad key"][0], tmp_path)
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and "ChildFailedError" in out
    assert sum("did you mean" in line for line in out.split("ChildFailedError")[-1].splitlines()) == 1
    assert last_line(out).startswith("error: ") and "did you mean 'learning_rate'?" in last_line(out)


@pytest.mark.faults
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "torchrun"])
def test_ctrl_c_ends_with_where_the_checkpoint_is(launcher: list[str], tmp_path: Path):
    keys = ["--max_steps", "100000", "--logging_steps", "1", "--eval_strategy", "no", "--output_dir", "run"]
    (tmp_path / "tiny.yaml").write_text(TINY)
    process = start(launcher, ["pretrain.py", "tiny.yaml", *keys], tmp_path)
    log, limit = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 240
    while not (log.exists() and log.read_text()):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and, with accelerate, to its process
    out = process.communicate(timeout=120)[0]
    assert "Traceback" in out
    assert last_line(out) == "stopped: a checkpoint is in run; the same command goes on from it"


def test_without_a_launcher_it_is_said_once(tmp_path: Path):
    words = ["pretrain", "llama/tiny", "--lerning_rate", "1"]
    done = subprocess.run([sys.executable, "-m", "ibnorm_hf.cli", *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("did you mean") == 1
