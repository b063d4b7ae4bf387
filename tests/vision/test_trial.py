# SPDX-License-Identifier: Apache-2.0
"""What a classifier needs and refuses is known before a weight is allocated."""

from pathlib import Path

import pytest
import torch

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training import job, memory
from ibnorm_hf.training.image_task import make_image_plan
from ibnorm_hf.training.keys.recipe import load_recipe
from ibnorm_hf.training.model.image_build import build_image_config, build_image_model, planned_facts
from ibnorm_hf.training.model.trial import require_joint_statistics

RECIPES = Path(__file__).parents[2] / "recipes"
LONG = ["--model.hidden_sizes", "[8,16,16]", "--model.depths", "[1,1,1]"]  # 8 x 8 ends as 1 x 1


def plan_of(name, *keys):
    recipe = load_recipe(RECIPES / f"{name}.yaml", list(map(str, keys)))
    return recipe, make_image_plan(recipe, planned_facts(recipe.data))


@pytest.mark.parametrize("norm", ["ibnorm-l", "normalnorm", "batchnorm"])
def test_the_estimate_is_what_the_real_model_keeps(norm):
    recipe, plan = plan_of(
        "resnet/tiny", "--norm_type", norm, "--per_device_train_batch_size", 8, "--global_batch_size", 8
    )
    facts = planned_facts(recipe.data)
    model = build_image_model(build_image_config(recipe, facts)).train()
    own = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(pixel_values=torch.rand(8, 1, 8, 8), labels=torch.arange(8))
    measured = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)
    assert plan.bytes_activations == pytest.approx(measured, rel=0.15)


def test_a_plan_that_does_not_fit_is_refused_with_the_micro_batch_that_does(monkeypatch, capsys, tmp_path):
    words = ["--per_device_train_batch_size", 64, "--global_batch_size", 64, "--output_dir", tmp_path / "run"]
    recipe, plan = plan_of("vit/tiny", *words)
    monkeypatch.setattr(memory, "room", lambda run: plan.bytes_state + 40 * (plan.bytes_activations // 64))
    with pytest.raises(UserError, match=r"per_device_train_batch_size 32 is the largest that fits; --force tries"):
        job.pretrain(recipe)
    assert not (tmp_path / "run").exists()
    job.print_plan(recipe)
    assert "memory: weights, optimizer and activations need" in capsys.readouterr().out
    monkeypatch.setattr(job, "claim", lambda recipe: pytest.fail("went on"))
    with pytest.raises(pytest.fail.Exception, match="went on"):
        job.pretrain(plan_of("vit/tiny", *words, "--force")[0])
    monkeypatch.setattr(memory, "room", lambda run: plan.bytes_state + 1)
    with pytest.raises(
        UserError, match="no micro-batch fits; set activation_checkpointing, or lower image_size or the"
    ):
        job.pretrain(recipe)


def test_activations_computed_again_are_fewer():
    assert plan_of("vit/tiny", "--activation_checkpointing", "true")[1].bytes_activations < (
        plan_of("vit/tiny")[1].bytes_activations / 3
    )


@pytest.mark.parametrize("mode", [[], ["--dry_run"]])
@pytest.mark.parametrize(
    "keys, said",
    [
        (["--activation_checkpointing", "true"], "key activation_checkpointing: ibnorm_resnet cannot compute its act"),
        (
            [*LONG, "--per_device_train_batch_size", "1", "--norm_type", "ibnorm-l"],
            "with 1, a batch statistic would be that of one value (an image of 8 x 8 ends as one pixel); give at",
        ),
        ([*LONG, "--per_device_train_batch_size", "1", "--norm_type", "batchnorm"], "that of one value"),
        ([*LONG, "--per_device_train_batch_size", "1", "--norm_type", "normalnorm"], "that of one value"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_before_the_work(keys, said, mode, capsys, tmp_path):
    words = [str(RECIPES / "resnet/tiny.yaml"), "--output_dir", str(tmp_path / "run"), *keys, *mode]
    assert main(["pretrain", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "norm, device, said",
    [
        ("ibnorm-l", "cpu", None),
        ("ibnorm-t", "cuda", None),
        ("batchnorm", "cuda", None),
        ("batchnorm", "cpu", "torch synchronizes its BatchNorm on GPUs alone"),
        ("normalnorm", "cuda", "NormalBatchNorm2d is computed over each process's own batch"),
    ],
)
def test_a_norm_over_the_batch_is_synchronized_or_says_that_it_is_not(norm, device, said):
    recipe = load_recipe(RECIPES / "resnet/tiny.yaml", ["--norm_type", norm])
    config = build_image_config(recipe, planned_facts(recipe.data))
    model = build_image_model(config, device="meta", sync=True)
    if said is None:
        require_joint_statistics(model, device)
    else:
        with pytest.raises(UserError, match=said):
            require_joint_statistics(model, device)
