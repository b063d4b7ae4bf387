# SPDX-License-Identifier: Apache-2.0
"""Two processes compute what one does: same samples, losses and validation for the same global batch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ibnorm_hf.cli import main
from ibnorm_hf.training import job

from .conftest import TINY
from .forked import launch

ROOT = Path(__file__).parents[2]
KEYS = ["--global_batch_size", "8", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "3"]
KEYS += ["--save_steps", "2", "--save_total_limit", "9"]
SHARDED = [Path(__file__).with_name("fsdp_on_cpu.py")]  # and how, as a file of recipes/accelerate says
PROGRAMS = {"ddp": [ROOT / "recipes" / "pretrain.py"]} | {
    path.stem: [*SHARDED, path] for path in sorted((ROOT / "recipes" / "accelerate").glob("fsdp*.yaml"))
}


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def two_processes(kind: str, recipe: Path, run: Path, keys: list[str] = KEYS) -> str:
    done = launch(2, *PROGRAMS[kind], recipe.resolve(), *keys, "--output_dir", run.resolve())
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def same_run(one: Path, two: Path) -> None:
    """Equal to rounding in every number, and exactly in the samples."""
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a.get("samples_sha256") == b.get("samples_sha256")
        for key in ("loss", "lr", "grad_norm", "eval_loss", "tokens"):
            assert (key in a) == (key in b)
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=2e-5), key
    facts = [json.loads((run / "eval" / "validation.json").read_text()) for run in (one, two)]
    assert facts[0]["tokens"] == facts[1]["tokens"]
    a, b = (load_file(run / "checkpoint-6" / "model.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    a, b = (torch.load(run / "checkpoint-6" / "optimizer.pt", weights_only=True) for run in (one, two))
    assert [g["params"] for g in a["param_groups"]] == [g["params"] for g in b["param_groups"]]
    for number, state in a["state"].items():
        assert torch.allclose(state["exp_avg"], b["state"][number]["exp_avg"], atol=1e-6)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, cache) -> Path:
    """The run of one process, with a checkpoint every second step."""
    from ibnorm_hf.training.keys.recipe import load_recipe

    folder = tmp_path_factory.mktemp("one")
    (folder / "tiny.yaml").write_text(TINY)
    job.pretrain(load_recipe(folder / "tiny.yaml", [*KEYS, "--output_dir", str(folder / "run")]))
    return folder / "run"


def back_to(run: Path, step: int, target: Path) -> Path:
    """A copy of a run as it was right after the checkpoint of ``step``."""
    shutil.copytree(run, target)
    shutil.rmtree(target / "model")
    for path in target.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    return target


@pytest.mark.parametrize("kind", PROGRAMS)
def test_two_processes_equal_one(one_process: Path, make_recipe, recipe_file: Path, tmp_path: Path, kind: str):
    out = two_processes(kind, recipe_file, tmp_path / "two")
    assert "(2 processes x 2 micro-batches)" in out
    assert out.count("step 3/6") == 1  # one voice
    same_run(one_process, tmp_path / "two")
    manifest = json.loads((tmp_path / "two" / "checkpoint-6" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(manifest["files"])
    # One layout, sharded or not: nothing that only such processes could read.
    alone = json.loads((one_process / "checkpoint-6" / "manifest.json").read_text())
    assert {n for n in manifest["files"] if "rng" not in n} == {n for n in alone["files"] if "rng" not in n}
    # Between two logs, so the losses of both processes are in the checkpoint; one process goes on from it.
    run = back_to(tmp_path / "two", 4, tmp_path / "resumed")
    job.pretrain(make_recipe(*KEYS, "--output_dir", run))
    same_run(one_process, run)


def test_sharded_processes_go_on_from_one(one_process: Path, recipe_file: Path, tmp_path: Path):
    run = back_to(one_process, 4, tmp_path / "run")
    assert "resume: checkpoint-4" in two_processes("fsdp2", recipe_file, run)
    same_run(one_process, run)


@pytest.mark.parametrize("library", ["FSDP", "DEEPSPEED"])
def test_sharding_that_would_not_happen_is_refused(recipe_file: Path, tmp_path: Path, monkeypatch, capsys, library):
    # accelerate copies the model on CPU processes, whatever was asked.
    from ibnorm_hf.training.keys import launch

    settings = {f"ACCELERATE_USE_{library}": "true"}
    monkeypatch.setattr(launch, "_setting", settings.get)
    assert main(["pretrain", str(recipe_file), "--output_dir", str(tmp_path / "run")]) == 2
    assert "accelerate shards no model on this device" in capsys.readouterr().err
