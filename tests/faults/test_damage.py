# SPDX-License-Identifier: Apache-2.0
"""A damaged checkpoint costs the steps since the one before it, and nothing else."""

import shutil

import pytest

from ibnorm_hf.training import job
from ibnorm_hf.training.folder.manifest import verify
from tests.training.test_run import DAMAGE

from .compare import unlike


@pytest.mark.faults("a damaged checkpoint")
@pytest.mark.parametrize("kind", DAMAGE)
def test_the_run_falls_back_and_ends_the_same(finished, run, make_recipe, capsys, kind):
    DAMAGE[kind][0](run / "checkpoint-6")
    job.pretrain(make_recipe())
    out = capsys.readouterr().out
    assert "resume: passing over checkpoint-6: checkpoint " in out and "resume: checkpoint-3" in out
    verify(run / "checkpoint-6")
    assert unlike(finished, run) == []


@pytest.mark.faults("all checkpoints damaged")
def test_without_a_complete_checkpoint_it_starts_over(finished, run, make_recipe, capsys):
    for name in ("checkpoint-3", "checkpoint-6"):
        DAMAGE["flipped"][0](run / name)
    job.pretrain(make_recipe())
    assert "resume: no complete checkpoint, starting from step 0" in capsys.readouterr().out
    assert unlike(finished, run) == []


@pytest.mark.faults("a run that is finished already")
def test_a_finished_run_is_left_as_it_is(finished, run, make_recipe, capsys):
    shutil.copytree(finished / "model", run / "model")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    job.pretrain(make_recipe())
    assert "resume: all 6 steps are done, nothing to train" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    assert unlike(finished, run) == []
