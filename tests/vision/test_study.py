# SPDX-License-Identifier: Apache-2.0
"""The Fashion-MNIST study: what it runs next, how it chooses, and that README says what the file says."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from ibnorm_hf.training.images.images import ImageData, Images

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes" / "benchmarks"))  # as where it is run, beside its helpers
spec = importlib.util.spec_from_file_location("fashion_mnist", ROOT / "recipes" / "benchmarks" / "fashion_mnist.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def searched(top1, arm=("resnet", "batchnorm"), loss=1.0):
    return [
        {"model": arm[0], "norm": arm[1], "learning_rate": rate, "seed": 0, "held_out": {"top1": t, "loss": loss}}
        for rate, t in zip(study.RATES, top1, strict=False)
    ]


def test_every_arm_searches_the_same_grid_before_anything_else():
    todo = study.missing([])
    assert len(todo) == 30 and {seed for *_, seed in todo} == {study.SEARCH_SEED}
    for arm in study.ARMS:
        assert [rate for *a, rate, _ in todo if tuple(a) == arm] == list(study.RATES)
    assert study.SEARCH_SEED not in study.SEEDS and len(study.SEEDS) == 3


def test_the_best_rate_goes_on_to_three_other_seeds():
    runs = searched([0.7, 0.9, 0.8])
    assert study.best_rate(runs, "resnet", "batchnorm") == study.RATES[1]
    assert [w for w in study.missing(runs) if w[3]] == [("resnet", "batchnorm", study.RATES[1], s) for s in (1, 2, 3)]
    assert study.best_rate(searched([0.7, 0.9]), "resnet", "batchnorm") is None
    diverged = searched([0.5, 0.5, 0.5])
    diverged[2]["held_out"]["loss"] = None
    diverged[1]["held_out"]["loss"] = 0.5
    assert study.best_rate(diverged, "resnet", "batchnorm") == study.RATES[1]


def test_arms_differ_in_nothing_but_the_norm():
    for architecture in ("resnet", "vit"):
        norms = [norm for a, norm in study.ARMS if a == architecture]
        models = [study.build(architecture, norm, 1) for norm in norms]
        assert len({m.num_parameters() for m in models}) == 1 and len(norms) == 5
        for model in models[1:]:
            for (name, p), (_, q) in zip(models[0].named_parameters(), model.named_parameters(), strict=True):
                assert torch.equal(p, q), name


def test_subsets_are_disjoint_and_fixed():
    count = study.TRAINING_IMAGES + study.HELD_OUT
    pixels = torch.arange(count)[:, None, None, None]
    data = ImageData(Images(pixels, torch.zeros(count, dtype=torch.long)), None, (), "")
    train, held_out = study.subset(data)
    assert len(train) == study.TRAINING_IMAGES and len(held_out) == study.HELD_OUT
    assert not set(train.pixels.flatten().tolist()) & set(held_out.pixels.flatten().tolist())
    assert torch.equal(study.subset(data)[0].pixels, train.pixels)


def test_a_run_is_repeatable(monkeypatch):
    monkeypatch.setattr(study, "STEPS", 3)
    monkeypatch.setattr(study, "WARMUP", 1)
    generator = torch.Generator().manual_seed(0)
    count = study.TRAINING_IMAGES + study.HELD_OUT
    pixels = torch.randint(0, 256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    few = Images(pixels[:64], torch.arange(64) % 10)
    data = ImageData(Images(pixels, torch.arange(count) % 10), few, (), "")
    first, second = (study.one_run(data, "resnet", "normalnorm", 1e-2, 1)["test"] for _ in range(2))
    assert first == second and set(first["corrupted"]) == {"noise", "blur", "contrast"}


@pytest.fixture
def content():
    if not study.RESULTS.is_file():
        pytest.skip("the study was not run in this checkout")
    return json.loads(study.RESULTS.read_text(encoding="utf-8"))


def test_the_table_is_of_the_shipped_setting_and_complete(content):
    assert content["setting"] == study.SETTING
    assert study.missing(content["runs"]) == []
    assert len(content["runs"]) == len(study.ARMS) * (len(study.RATES) + len(study.SEEDS))
    assert max(r["cpu_s"] for r in content["runs"] if "cpu_s" in r) <= study.LIMIT_S


def test_card_and_readme_are_rendered_from_the_file(content):
    assert study.CARD.read_text(encoding="utf-8") == study.card(content)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split(study.MARKERS[0])[1].split(study.MARKERS[1])[0]
    assert block.strip() == study.text(content)
