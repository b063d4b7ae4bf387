# SPDX-License-Identifier: Apache-2.0
"""The job on recipes of images: run folders, exact resume, plans and mistakes."""

import json
import re
import runpy
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from ibnorm_hf import IBBatchNorm2d
from ibnorm_hf.analysis import loss_curve
from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training import job
from ibnorm_hf.training.image_task import make_image_plan
from ibnorm_hf.training.keys.recipe import load_recipe
from ibnorm_hf.training.model.image_build import planned_facts

from ..hosts import IMAGES, recipes
from ..training.forked import launch

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = ["--max_steps", "6", "--eval_steps", "3", "--save_steps", "3", "--logging_steps", "2", "--warmup_steps", "2"]
SHIPPED = recipes(IMAGES)
# Of every family's first run, and of models that are published at these sizes: parameters, tensors of norms.
EXPECTED = {
    "resnet/tiny": (78_570, "IBBatchNorm2d.weight 288"),
    "resnet/50": (25_557_032, "IBBatchNorm2d.weight 26,560"),
    "vit/tiny": (102_666, "IBNorm.weight 448"),
    "vit/small": (22_050_664, "IBNorm.weight 9,600"),
}


def run(name, folder, *keys):
    recipe = load_recipe(RECIPES / f"{name}.yaml", [*SHORT, "--output_dir", str(folder), *keys])
    return job.pretrain(recipe)


def lines(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.endswith("/tiny")])
def test_a_run_leaves_the_folder_of_every_run(name, tmp_path, capsys):
    words = [str(RECIPES / f"{name}.yaml"), *SHORT, "--output_dir", str(tmp_path / "run")]
    assert main(["pretrain", *words]) == 0
    out, folder = capsys.readouterr().out, tmp_path / "run"
    assert "calibration error" in out and "step 6/6" in out
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files >= {
        "config.yaml", "metrics.jsonl", "data.json", "environment.json", "loss.png", "eval/validation.json",
        "eval/robustness.json", "eval/robustness.png", "model/model.safetensors", "checkpoint-6/manifest.json",
    }  # fmt: skip
    training = [line for line in lines(folder) if "loss" in line]
    assert [line["images"] for line in training] == [128, 256, 384] and training[0]["share_over_lambda"]
    assert "tokens" not in training[0]
    evaluation = json.loads((folder / "eval" / "validation.json").read_text())
    robustness = json.loads((folder / "eval" / "robustness.json").read_text())
    for key in ("loss", "top1", "top5"):  # two ways to the same number: batches of the trainer, and of the evaluation
        assert evaluation[key] == pytest.approx(robustness["clean"][key], abs=1e-5)
    validated = [line for line in lines(folder) if "eval_loss" in line]
    assert [line["step"] for line in validated] == [3, 6]
    assert validated[-1]["eval_top1"] == evaluation["top1"] and evaluation["images"] == 360
    model = AutoModelForImageClassification.from_pretrained(folder / "model")
    assert model.config.id2label == {i: str(i) for i in range(10)} and model.config.num_channels == 1
    norm = next((m for m in model.modules() if isinstance(m, IBBatchNorm2d)), None)
    assert norm is None or norm.num_batches_tracked == 6
    again = load_recipe(folder / "config.yaml")
    assert again.sizes == load_recipe(RECIPES / f"{name}.yaml").sizes

    assert loss_curve._unit(folder) == "an image"
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert main(["pretrain", *words]) == 0
    again = capsys.readouterr().out
    assert "nothing to train" in again and out.splitlines()[-1] in again and "calibration error" in again
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    (folder / "eval" / "robustness.json").unlink()  # as if killed before it
    assert main(["pretrain", *words]) == 0
    assert json.loads((folder / "eval" / "robustness.json").read_text()) == robustness


@pytest.mark.parametrize("norm", ["ibnorm-l", "normalnorm"])
def test_a_resumed_run_is_bit_equal(norm, tmp_path):
    """Weights and running statistics: crops, order and NormalNorm's noise go on where they were."""
    run("resnet/tiny", tmp_path / "whole", "--norm_type", norm)
    run("resnet/tiny", tmp_path / "resumed", "--norm_type", norm)
    for path in sorted((tmp_path / "resumed").glob("checkpoint-6/*")):
        path.unlink()
    (tmp_path / "resumed" / "checkpoint-6").rmdir()
    shutil.rmtree(tmp_path / "resumed" / "model")
    run("resnet/tiny", tmp_path / "resumed", "--norm_type", norm)
    whole, resumed = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "resumed"))
    assert whole.keys() == resumed.keys() and any("running" in k for k in whole)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)

    def losses(name):
        return [line.get("loss", line.get("eval_loss")) for line in lines(tmp_path / name)]

    assert losses("whole") == losses("resumed")


def test_seed_and_norm_change_a_run_and_nothing_else_does(tmp_path):
    base = run("resnet/tiny", tmp_path / "a").validation["loss"]
    small = run("resnet/tiny", tmp_path / "b", "--per_device_eval_batch_size", "7").validation["loss"]
    assert small == pytest.approx(base, rel=1e-6)
    assert run("resnet/tiny", tmp_path / "c", "--seed", "7").validation["loss"] != base
    assert run("resnet/tiny", tmp_path / "d", "--norm_type", "batchnorm").validation["loss"] != base


def test_two_processes_with_joint_statistics_train_as_one(tmp_path):
    """Twice 32 images with synchronized norms against 64 in one process: the same order, the same weights."""
    keys = ["--augmentation", "plain", "--max_grad_norm", "1e9", "--optim", "sgd", "--learning_rate", "0.1"]
    alone = run("resnet/tiny", tmp_path / "one", *keys)
    words = [RECIPES / "resnet/tiny.yaml", *SHORT, *keys, "--per_device_train_batch_size", "32"]
    words += ["--sync_batch_norm", "true", "--output_dir", tmp_path / "two"]
    done = launch(2, RECIPES / "train_vision.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)
    processors = [(tmp_path / n / "model" / "preprocessor_config.json").read_text() for n in ("one", "two")]
    assert processors[0] == processors[1]
    validation = json.loads((tmp_path / "two" / "eval" / "validation.json").read_text())
    assert validation["loss"] == pytest.approx(alone.validation["loss"], rel=1e-4) and validation["images"] == 360


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.endswith("/tiny")])
def test_norms_alone_are_trained(name, tmp_path, capsys):
    flags = ["--train_only", "norms", "--eval_strategy", "no"]
    run(name, tmp_path / "one", *flags, "--max_steps", "1", "--learning_rate", "0", "--warmup_steps", "0")
    run(name, tmp_path / "two", *flags, "--max_steps", "1", "--learning_rate", "0.1", "--warmup_steps", "0")
    assert "the rest frozen" in capsys.readouterr().out
    one, two = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    moved = {key for key in one if not torch.equal(one[key], two[key])}
    assert moved == {key for key in one if "norm" in key and key.endswith(("weight", "bias"))}


def test_micro_batches_are_averaged(tmp_path):
    """ViT sees each image alone, so 4 x 16 images are 64."""
    keys = ["--augmentation", "plain", "--optim", "sgd", "--learning_rate", "0.1"]
    run("vit/tiny", tmp_path / "one", *keys)
    run("vit/tiny", tmp_path / "four", *keys, "--per_device_train_batch_size", "16")
    one, four = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "four"))
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-4, atol=1e-5, msg=name)
    losses = [[line["loss"] for line in lines(tmp_path / n) if "loss" in line] for n in ("one", "four")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_plans_of_all_recipes(name, tmp_path, monkeypatch, capsys):
    def refuse(*words, **keys):
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", str(RECIPES / f"{name}.yaml"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    said = re.search(r"([\d,]+) parameters", out)[1]
    parameters, norms = EXPECTED.get(name, (int(said.replace(",", "")), "Norm"))
    assert said == f"{parameters:,}" and norms in out.split("no decay: ")[1]
    assert not list(tmp_path.iterdir())
    (host,) = (h for h in IMAGES.values() if h.model_type == load_recipe(RECIPES / f"{name}.yaml").model.model_type)
    recipe = load_recipe(RECIPES / f"{name}.yaml", ["--norm_type", host.norm])
    assert f"{parameters:,} parameters" in "".join(make_image_plan(recipe, planned_facts(recipe.data)).lines)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_key_is_commented_and_the_header_gives_the_command(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    header = text.split("\n\nmodel_type")[0]
    assert f"accelerate launch recipes/train_vision.py recipes/{name}.yaml" in header
    assert ("Expected: not run" in header) == (not name.endswith("tiny")) and "@" not in header
    for line in text.splitlines():
        if re.match(r"\s*\w+:", line):
            assert re.search(r"  # .*(default|on the command line)", line), line


@pytest.mark.parametrize("name", [n for n in SHIPPED if not n.endswith("tiny")])
def test_imagenet_recipes_are_ninety_epochs(name):
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert content["max_steps"] * content["global_batch_size"] == pytest.approx(90 * 1_281_167, rel=1e-3)


@pytest.mark.parametrize(
    "keys, message",
    [
        (["--imges", "digits"], "unknown key 'imges'; did you mean 'images'?"),
        (["--corpus", "embedded"], "unknown key 'corpus'"),
        (["--augmentation", "cut"], "key augmentation must be one of plain, crop, crop-flip, resized-crop-flip"),
        (["--image_mean", "0.5"], "key image_mean and image_std have one number a channel, or neither is given"),
        (["--model.num_labels", "3"], "key model.num_labels: it follows from the data; see the key classes"),
        (["--model.hiden_sizes", "[3]"], "unknown key 'model.hiden_sizes'; did you mean 'hidden_sizes'?"),
        (["--norm_type", "bachnorm"], "Did you mean 'batchnorm'?"),
        (["--model_type", "ibnorm_llama"], "key model_type: 'ibnorm_llama' classifies no images"),
        (["--model_type", "resnet"], "keeps its own norms; use model_type ibnorm_resnet"),
        (["--images", "/nowhere/at/all", "--image_size", "8"], "images /nowhere/at/all do not exist"),
        (["--image_size", "9"], "image_size is 9, but the images are 8 x 8"),
        (["--classes", "3"], "classes is 3, but digits has 10"),
        (["--push_to_hub", "true", "--hub_model_id", "a/b"], "upload this run with `hf upload`"),
    ],
)
def test_mistakes_are_one_sentence(keys, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [str(RECIPES / "resnet/tiny.yaml"), *SHORT, "--output_dir", str(tmp_path / "run"), *keys]
    assert main(["pretrain", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_patch_size_must_fit(tmp_path):
    with pytest.raises(UserError, match=r"model.patch_size 3 does not divide the image's side 8"):
        run("vit/tiny", tmp_path / "run", "--model.patch_size", "3")


def test_another_recipes_folder_is_refused(tmp_path):
    run("resnet/tiny", tmp_path / "run")
    with pytest.raises(UserError, match="holds another run"):
        run("resnet/tiny", tmp_path / "run", "--crop_padding", "2")


def test_an_image_model_without_images_is_told_what_is_missing(tmp_path, capsys):
    (tmp_path / "bare.yaml").write_text("model_type: ibnorm_resnet\nmax_steps: 1\n")
    assert main(["pretrain", str(tmp_path / "bare.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    assert "'ibnorm_resnet' is no language model; to classify images give the key images" in capsys.readouterr().err


def test_the_launcher_is_the_command(monkeypatch, capsys):
    """`recipes/train_vision.py RECIPE` takes the words of `ibnorm-hf pretrain`."""
    launcher = str(RECIPES / "train_vision.py")
    monkeypatch.setattr(sys, "argv", [launcher, str(RECIPES / "vit/tiny.yaml"), "--dry_run"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(launcher, run_name="__main__")
    assert ended.value.code == 0 and "102,666 parameters" in capsys.readouterr().out
