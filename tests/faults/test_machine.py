# SPDX-License-Identifier: Apache-2.0
"""What the machine does to a run: a full disk, no memory, a second program, a dead process."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training import job
from ibnorm_hf.training.folder.failures import full_disk, out_of_memory
from ibnorm_hf.training.folder.lock import FolderLock
from ibnorm_hf.training.folder.manifest import SAVING, newest_complete, tidy, verify
from ibnorm_hf.training.folder.run_folder import claim
from ibnorm_hf.training.loop.trainer import PretrainTrainer
from ibnorm_hf.training.text import account, packing

from .compare import log_lines, unlike

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file_limit():
    """``file_limit(bytes)``: from now on no file of this process may grow beyond that; a real error of the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def at_step(monkeypatch, step: int, act) -> None:
    """Do something right before the checkpoint of ``step`` is saved."""
    real = PretrainTrainer._save_checkpoint

    def save(self, *words):
        if self.state.global_step == step:
            act()
        return real(self, *words)

    monkeypatch.setattr(PretrainTrainer, "_save_checkpoint", save)


def refuse(monkeypatch, owner, name: str) -> None:
    def fail(*words, **keys):
        raise OSError(errno.ENOSPC, "No space left on device", str(words[0]) if words else None)

    monkeypatch.setattr(owner, name, fail)


# Weights are 161 kB here and the optimizer's state 337 kB: the limit decides which of them breaks off.
BREAKS = {
    "weights": lambda patch, limit: limit(100_000),
    "optimizer": lambda patch, limit: limit(200_000),
    "flush": lambda patch, limit: refuse(patch, os, "fsync"),
    "rename": lambda patch, limit: refuse(patch, os, "replace"),
}


@pytest.mark.faults("a full disk while a checkpoint is saved")
@pytest.mark.parametrize("where", BREAKS)
def test_a_full_disk_harms_no_earlier_checkpoint(finished, make_recipe, tmp_path, monkeypatch, file_limit, where):
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: BREAKS[where](patch, file_limit))
        with pytest.raises(UserError, match=r"(disk is full|limit on file sizes).* could not be written; ") as caught:
            job.pretrain(make_recipe())
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    found = newest_complete(tmp_path / "run")
    assert found is not None and found[1]["step"] == 3
    assert not (tmp_path / "run" / SAVING).exists()  # half a checkpoint does not keep the room
    file_limit(resource.RLIM_INFINITY)
    job.pretrain(make_recipe())
    assert unlike(finished, tmp_path / "run") == []


@pytest.mark.faults("a full disk while text is packed")
def test_a_full_disk_while_packing(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        refuse(patch, account, "write_json")
        with pytest.raises(UserError, match=r"disk is full: .* set IBNORM_CACHE to another disk"):
            job.prepare(make_recipe())
    assert len(job.prepare(make_recipe()).train) > 0


@pytest.mark.faults("a disk too small for the packed text")
def test_what_cannot_fit_is_refused_before_it_is_written(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    usage = packing.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs about 0 MB and .* has 0 free; free some, set IBNORM_CACHE"):
        job.prepare(make_recipe())
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_other_errors_are_not_taken_for_a_full_disk():
    assert full_disk(OSError(errno.EACCES, "no")) is None
    assert full_disk(RuntimeError("shapes do not match")) is None
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


@pytest.mark.faults("out of memory")
@pytest.mark.parametrize("kind", ["torch", "python"])
def test_out_of_memory_says_what_to_lower(finished, make_recipe, tmp_path, monkeypatch, kind, capsys):
    real = PretrainTrainer.training_step

    def step(self, *words):
        if self.state.global_step == 4:
            torch.empty(1 << 50) if kind == "torch" else bytearray(1 << 60)
        return real(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", step)
        with pytest.raises(UserError, match="out of memory: lower per_device_train_batch_size from 4") as caught:
            job.pretrain(make_recipe())
    assert caught.value.exit_code == 1
    job.pretrain(make_recipe("--per_device_train_batch_size", 4))
    assert unlike(finished, tmp_path / "run") == []


@pytest.mark.faults("two programs in one run folder")
def test_a_second_run_is_refused(make_recipe, recipe_file, tmp_path, capsys):
    recipe = make_recipe()
    with claim(recipe):
        before = (tmp_path / "run" / "config.yaml").stat().st_mtime_ns
        assert main(["pretrain", str(recipe_file), "--output_dir", str(tmp_path / "run")]) == 2
        assert "is in use by another run" in capsys.readouterr().err
        assert (tmp_path / "run" / "config.yaml").stat().st_mtime_ns == before
    job.pretrain(make_recipe("--max_steps", 1))


@pytest.mark.faults("a lock whose owner was killed")
def test_a_dead_program_keeps_no_lock(tmp_path):
    code = (
        "import sys, pathlib, time, os\n"
        "from ibnorm_hf.training.folder.lock import FolderLock\n"
        "lock = FolderLock(pathlib.Path(sys.argv[1])); lock.acquire()\n"
        "worker = os.fork()\n"  # as data loaders do: it outlives its parent
        "if worker: print(worker, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        try:
            with pytest.raises(UserError, match="in use by another run"):
                FolderLock(tmp_path).acquire()
            holder.kill()
            holder.wait()
            lock = FolderLock(tmp_path)
            lock.acquire()
            lock.release()
        finally:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.faults("SIGKILL between two renames")
def test_what_a_kill_left_behind_is_put_right(run: Path):
    (run / "checkpoint-6").rename(run / ".checkpoint-6.old")  # killed while it was being replaced
    for name in (SAVING, ".model.abc"):
        (run / name).mkdir()
        (run / name / "half").write_text("x")
    (run / ".config.yaml.7.tmp").write_text("x")
    (run / "checkpoint-1").mkdir()  # killed while it was being deleted
    tidy(run)
    verify(run / "checkpoint-6")
    assert not list(run.glob(".*")) and not (run / "checkpoint-1").exists()


@pytest.mark.faults("one process of two killed")
def test_a_killed_process_ends_the_job_with_its_reason(make_recipe, recipe_file, tmp_path):
    keys = ["--global_batch_size", "8", "--per_device_train_batch_size", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("dying_process.py")), str(recipe_file), *keys]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr and "rank      : 1" in done.stderr
    assert time.monotonic() - begin < 120  # nobody waits for the dead
    found = newest_complete(tmp_path / "run")
    assert found is not None and found[1]["step"] == 3 and found[1]["processes"] == 2
    job.pretrain(make_recipe(*keys))  # goes on, on one process
    job.pretrain(make_recipe(*keys, "--output_dir", tmp_path / "one"))
    for one, two in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "run"), strict=True):
        assert one.get("samples_sha256") == two.get("samples_sha256")
        for key in {"loss", "eval_loss", "grad_norm"} & one.keys():
            assert one[key] == pytest.approx(two[key], rel=2e-5)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "run")]
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-5) for k in weights[0])


@pytest.mark.faults("Ctrl-C and SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(finished, recipe_file, tmp_path, monkeypatch, number, capsys):
    real = PretrainTrainer.training_step

    def step(self, *words):
        if self.state.global_step == 3:
            for _ in range(2 if number == signal.SIGTERM else 1):  # a scheduler and its launcher send one each
                os.kill(os.getpid(), number)
        return real(self, *words)

    command = ["pretrain", str(recipe_file), "--output_dir", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", step)
        assert main(command) == 128 + number
    assert "a checkpoint is in" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "checkpoint-4" / "manifest.json").read_text())["step"] == 4
    assert main([*command, "--save_total_limit", "2"]) == 0
    assert log_lines(tmp_path / "run") == log_lines(finished)
    one, two = (load_file(p / "model" / "model.safetensors") for p in (finished, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.faults("SIGKILL before a run's first file is whole")
def test_the_beginning_of_a_first_file_is_no_other_run(make_recipe, tmp_path):
    recipe = make_recipe()
    folder = Path(str(recipe.run.output_dir))
    folder.mkdir(parents=True)
    (folder / ".config.yaml.123.tmp").write_text("mo")
    with claim(recipe):
        assert (folder / "config.yaml").is_file() and not list(folder.glob(".*.tmp"))
    (folder / "config.yaml").unlink()
    (folder / "notes.txt").write_text("somebody's")
    with pytest.raises(UserError, match="no run of this program"), claim(recipe):
        pass
