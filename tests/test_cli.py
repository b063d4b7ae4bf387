# SPDX-License-Identifier: Apache-2.0
"""The command line: quick help, exit codes, one line for a mistake, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ibnorm_hf.cli import _parser, main
from ibnorm_hf.modeling.create import list_norms

ROOT = Path(__file__).parents[1]
STEPS = 400


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; sys.argv = ['anything', '--help']\n"
        "from ibnorm_hf_command import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time())\n"
    )
    # In multiples of what a program costs here that only reads its words and the versions of what is installed.
    least = "import argparse, importlib.metadata, time; importlib.metadata.version('torch'); print(time.process_time())"
    *out, seconds = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    bare = subprocess.run([sys.executable, "-c", least], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert float(seconds) < 5 * float(bare), (seconds, bare)
    (jobs,) = (action.choices for action in _parser()._actions if action.choices)
    assert len(jobs) > 10 and all(any(line.split()[:1] == [job] for line in out) for job in jobs)


def test_the_name_of_a_program_decides_nothing():
    code = (
        "import sys; sys.argv = ['ibnorm-hf']\n"
        "import ibnorm_hf\n"
        "from transformers import AutoConfig\n"
        "assert AutoConfig.for_model('ibnorm_llama').model_type == 'ibnorm_llama'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_program_is_the_command_line():
    content = (ROOT / "pyproject.toml").read_text()
    assert 'ibnorm-hf = "ibnorm_hf_command:main"' in content and 'py-modules = ["ibnorm_hf_command"]' in content
    done = subprocess.run(
        [sys.executable, "-m", "ibnorm_hf_command", "norms"], capture_output=True, cwd=ROOT, text=True
    )
    assert done.returncode == 0 and "ibnorm-l" in done.stdout


def test_norms_lists_every_norm(capsys):
    assert main(["norms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_norms("batch")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["recipes/llama/tinny.yaml"],
            "recipes/llama/tinny.yaml does not exist; did you mean recipes/llama/tiny.yaml?",
        ),
        (["recipes/llama/tiny.yaml", "--norm_typ", "dyt"], "unknown key 'norm_typ'; did you mean 'norm_type'?"),
        (["recipes/llama/tiny.yaml", "--max_steps", "many"], "key max_steps: 'many' is not a whole number"),
        (["recipes/llama/tiny.yaml", "--corpus", "missing.txt", "--output_dir", "{tmp}/run"], "'missing.txt' does not"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["pretrain", *(word.replace("{tmp}", str(tmp_path)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert said in err


def test_usage_errors_are_code_2(capsys):
    for words in ([], ["pretrian", "x"], ["pretrain"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.faults
def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on(tmp_path: Path):
    """The real program, a real signal: exit code 130, then a resumed run to the end with its whole folder."""
    sizes = "vocab_size: 300, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2"
    (tmp_path / "r.yaml").write_text(
        f"model: {{{sizes}}}\ncorpus: {ROOT / 'LICENSE'}\nblock_size: 32\nvalidation_fraction: 0.1\n"
        f"max_steps: {STEPS}\n"
        "per_device_train_batch_size: 4\nlogging_steps: 1\neval_steps: 100000\nsave_steps: 100000\n"
        "learning_rate: 1e-3\nuse_cpu: true\n"
    )
    command = [sys.executable, str(ROOT / "recipes" / "pretrain.py"), "r.yaml", "--output_dir", "run"]
    environment = {**os.environ, "IBNORM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "a checkpoint is in run" in err and "Traceback" not in err
    (stopped,) = (tmp_path / "run").glob("checkpoint-*")
    step = json.loads((stopped / "manifest.json").read_text())["step"]
    assert 5 <= step < STEPS
    before = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(before[-1])["step"] == step
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert f"resume: checkpoint-{step}" in again.stdout and "validation loss" in again.stdout
    after = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert [json.loads(text)["step"] for text in after if '"loss"' in text] == list(range(1, STEPS + 1))
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "\r" not in again.stdout  # no progress bar where stdout is no terminal


def test_version_and_keys(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("ibnorm_hf 0.")
    assert main(["keys"]) == 0
    everything = capsys.readouterr().out
    for line in (
        "learning_rate: a number; default 5e-05; bound",
        "save_total_limit: a whole number or null; default 2; free",
        "crop_padding: a whole number; default 4; bound, images alone",
        "per_device_train_batch_size: a whole number; default 8; bound for images, free for text",
    ):
        assert f"{line}\n    " in everything
    assert not re.search(r"\n    \n", everything)  # every key says what it means
    assert main(["keys", "resume"]) == 0
    found = capsys.readouterr().out
    assert "resume: a text; default auto; free" in found and "resume_from_checkpoint: refused" in found
    assert "learning_rate:" not in found
    assert main(["keys", "lerning_rate"]) == 2
    assert "did you mean 'learning_rate'?" in capsys.readouterr().err


def test_a_dry_run_prints_the_resolved_recipe(capsys, tmp_path: Path):
    assert main(["pretrain", str(ROOT / "recipes/llama/tiny.yaml"), "--dry_run", "--seed", "7"]) == 0
    text = capsys.readouterr().out.partition("recipe:\n")[2]
    (tmp_path / "r.yaml").write_text(text)
    assert "optim: adamw_torch_fused" in text
    assert main(["pretrain", str(tmp_path / "r.yaml"), "--dry_run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out.partition("recipe:\n")[2]) == yaml.safe_load(text)


def test_several_devices_without_a_launcher_are_launched_over(monkeypatch, capsys):
    import accelerate.commands.launch as launch
    import torch

    started = []
    for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    monkeypatch.setattr(launch, "launch_command", started.append)
    recipe = str(ROOT / "recipes/llama/tiny.yaml")
    assert main(["pretrain", recipe, "--seed", "7"]) == 0
    assert "launch: 3 devices, a process each" in capsys.readouterr().out
    (words,) = started
    assert (words.num_processes, words.multi_gpu, words.module) == (3, True, True)
    assert [words.training_script, *words.training_script_args] == ["ibnorm_hf.cli", "pretrain", recipe, "--seed", "7"]
    assert main(["pretrain", recipe, "--use_cpu", "--dry_run"]) == 0
    monkeypatch.setenv("LOCAL_RANK", "0")
    from ibnorm_hf.training.keys.launch import launch_over_devices

    assert launch_over_devices("pretrain", recipe, []) is None and len(started) == 1


def test_a_reader_that_goes_away_is_no_traceback():
    command = f"{sys.executable} -m ibnorm_hf.cli keys | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert done.returncode in (0, 141)


@pytest.mark.parametrize(("of_the_process", "of_the_command"), [(2, 2), (-15, 143)])
def test_a_launched_process_that_fails_gives_its_code_and_no_traceback(of_the_process, of_the_command, monkeypatch):
    import accelerate.commands.launch as launch
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def fail(words):
        failure = ProcessFailure(local_rank=0, pid=1, exitcode=of_the_process, error_file="<N/A>")
        raise ChildFailedError("ibnorm_hf.cli", {0: failure})

    for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(launch, "launch_command", fail)
    assert main(["pretrain", str(ROOT / "recipes/llama/tiny.yaml")]) == of_the_command
