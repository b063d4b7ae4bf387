# SPDX-License-Identifier: Apache-2.0
"""Scores against their definitions, corruptions, and the picture."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.evaluation.classification import calibration_error, evaluate_images, predict, scores
from ibnorm_hf.evaluation.corruptions import CORRUPTIONS, corrupt, gaussian_blur
from ibnorm_hf.evaluation.robustness_chart import draw_robustness
from ibnorm_hf.training.images.images import Images, load_digits, load_idx


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def logits_of(confidences, predicted, classes=10):
    """Logits whose softmax gives each row's confidence to its predicted class and shares the rest."""
    rest = (1 - confidences) / (classes - 1)
    probabilities = rest[:, None].repeat(1, classes)
    probabilities[torch.arange(len(predicted)), predicted] = confidences
    return probabilities.log()


def test_scores():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]] * 4)
    found = scores(logits, torch.tensor([0, 4, 5, 6]))
    assert (found["top1"], found["top5"]) == (0.25, 0.5)
    expected = nn.functional.cross_entropy(logits.double(), torch.tensor([0, 4, 5, 6])).item()
    assert found["loss"] == pytest.approx(expected)
    assert scores(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))["top5"] == 1.0


def test_calibration_error_of_known_gaps():
    predicted = torch.arange(100) % 10
    confidences = torch.full((100,), 0.83, dtype=torch.float64)
    labels = torch.where(torch.arange(100) < 63, predicted, (predicted + 1) % 10)
    assert calibration_error(logits_of(confidences, predicted), labels) == pytest.approx(0.2)
    # Two intervals whose gaps would cancel if they were not taken one by one.
    confidences = torch.tensor([0.55, 0.95], dtype=torch.float64).repeat(50)
    right = torch.arange(100) % 2 == 0  # all of the unsure, none of the sure
    labels = torch.where(right, predicted, (predicted + 1) % 10)
    assert calibration_error(logits_of(confidences, predicted), labels) == pytest.approx((0.45 + 0.95) / 2)
    assert calibration_error(logits_of(torch.ones(4).double() - 1e-12, predicted[:4]), predicted[:4]) < 1e-9


def test_noise_blur_and_contrast():
    images = torch.rand(4, 3, 16, 16, generator=generator(1)) * 0.5 + 0.25
    for name in CORRUPTIONS:
        distances = [(corrupt(images, name, s, generator()) - images).square().mean() for s in range(1, 6)]
        assert distances == sorted(distances) and distances[0] > 0
        assert torch.equal(corrupt(images, name, 3, generator()), corrupt(images, name, 3, generator()))
        assert corrupt(images, name, 5, generator()).min() >= 0 and corrupt(images, name, 5, generator()).max() <= 1
    stripes = torch.tensor([0.4, 0.6]).repeat(1, 1, 100, 50)
    noise = corrupt(torch.cat([stripes, (stripes - 0.5) * 2 + 0.5]), "noise", 3, generator())
    noise = noise - torch.cat([stripes, (stripes - 0.5) * 2 + 0.5])
    assert noise.std((1, 2, 3)).tolist() == pytest.approx([0.5 * 0.1, 0.5 * 0.2], rel=0.05)  # of its own contrast
    flat = corrupt(images, "contrast", 5, generator())
    torch.testing.assert_close(flat.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(flat.std((1, 2, 3)), 0.4 * images.std((1, 2, 3)))
    with pytest.raises(ValueError, match="no corruption 'fog' of severity 3; known: noise, blur, contrast, 1 to 5"):
        corrupt(images, "fog", 3, generator())


def test_blur_is_a_gaussian():
    point = torch.zeros(1, 2, 21, 21)
    point[0, :, 10, 10] = 1
    blurred = gaussian_blur(point, 1.5)
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(1, 2))
    assert blurred[0, 0, 10, 12] / blurred[0, 0, 10, 10] == pytest.approx(math.exp(-0.5 * (2 / 1.5) ** 2), rel=1e-4)
    torch.testing.assert_close(blurred[0, 0], blurred[0, 0].T)
    torch.testing.assert_close(gaussian_blur(torch.full((1, 1, 8, 8), 0.3), 0.7), torch.full((1, 1, 8, 8), 0.3))


class Brightest(nn.Module):
    """Says which of ten pixels is the brightest: right on the images below, and less sure the more noise there is."""

    config = SimpleNamespace(num_labels=10)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.scale * pixel_values.flatten(1))


@pytest.fixture(scope="module")
def judged():
    labels = torch.arange(300) % 10
    pixels = (nn.functional.one_hot(labels, 10) * 120 + 60).to(torch.uint8).view(300, 1, 2, 5)
    model = Brightest().train()
    return model, Images(pixels, labels), evaluate_images(model, Images(pixels, labels), lambda v: v, batch_size=64)


def test_evaluation_covers_every_corruption(judged):
    model, images, result = judged
    assert model.training and result["images"] == 300 and result["classes"] == 10
    assert result["clean"]["top1"] == 1.0
    assert {n: list(s) for n, s in result["corrupted"].items()} == {n: list("12345") for n in CORRUPTIONS}
    noise = [result["corrupted"]["noise"][s]["loss"] for s in "12345"]
    assert result["clean"]["loss"] < noise[0] < noise[2] < noise[4]
    every = [s["top1"] for by in result["corrupted"].values() for s in by.values()]
    assert result["corrupted_top1"] == pytest.approx(sum(every) / 15)
    assert evaluate_images(model, images, lambda v: v, batch_size=64) == result


def test_a_data_set_read_row_by_row_gives_the_same(judged):
    model, images, _ = judged
    rows = [images[i] for i in range(len(images))]
    for a, b in zip(predict(model, rows, lambda v: v), predict(model, images, lambda v: v), strict=True):
        assert torch.equal(a, b)


def test_picture(judged, tmp_path):
    _, images, result = judged
    draw_robustness(result, images[0]["pixel_values"], tmp_path / "eval" / "r.png")
    draw_robustness(result, images[0]["pixel_values"].expand(3, -1, -1), tmp_path / "r.png")
    assert (tmp_path / "eval" / "r.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "r.png").stat().st_size > 10_000
    with pytest.raises(UserError, match=r"must end in \.png"):
        draw_robustness(result, images[0]["pixel_values"], tmp_path / "r.jpg")


@pytest.mark.parametrize("side", [8, 28, 64])
def test_every_severity_changes_small_images_too(side):
    images = torch.rand(8, 1, side, side, generator=generator(2))
    for name in CORRUPTIONS:
        seen = [images, *(corrupt(images, name, severity, generator()) for severity in range(1, 6))]
        steps = [(a - b).abs().mean().item() for a, b in itertools.pairwise(seen)]
        assert min(steps) > 2e-3, (name, steps)


def classifier(train: Images) -> nn.Module:
    """A few seconds of training on pixels as they are."""
    torch.manual_seed(0)
    side, classes = train.pixels.shape[-1], int(train.labels.max()) + 1
    pooled = nn.AdaptiveAvgPool2d(4)
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=side // 8), nn.ReLU()]
    model = nn.Sequential(*body, pooled, nn.Flatten(), nn.Linear(512, classes))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(200):
        rows = torch.randint(len(train), (64,), generator=generator(step))
        loss = nn.functional.cross_entropy(model(train.pixels[rows].float() / 255), train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


class Judged(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, SimpleNamespace(num_labels=10)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.model(pixel_values))


FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@pytest.mark.parametrize("name", ["digits", "digits in 28 x 28", *(["fashion"] if FASHION.is_dir() else [])])
def test_a_severity_does_more_than_the_one_before_and_the_first_does_little(name):
    data = load_idx(FASHION) if name == "fashion" else load_digits()
    train = data.train
    # Of the digits there are 360; of what is hard enough to be wrong at a quarter, so few differ by chance alone.
    held_out = data.validation.select(range(2_000 if name == "fashion" else 360))
    if name.endswith("28"):
        train, held_out = (
            Images(nn.functional.interpolate(part.pixels, size=28, mode="bilinear"), part.labels)
            for part in (train, held_out)
        )
    result = evaluate_images(Judged(classifier(train)), held_out, lambda pixels: pixels)
    clean = result["clean"]
    assert clean["top1"] > (0.7 if name == "fashion" else 0.9)
    for corruption, by_severity in result["corrupted"].items():
        losses = [clean["loss"], *(by_severity[s]["loss"] for s in "12345")]
        shares = [clean["top1"], *(by_severity[s]["top1"] for s in "12345")]
        assert losses == sorted(set(losses)), (corruption, losses)
        assert all(after <= before + 0.01 for before, after in itertools.pairwise(shares)), (corruption, shares)
        assert shares[1] > clean["top1"] - 0.06 and shares[5] < clean["top1"] - 0.03, (corruption, shares)
