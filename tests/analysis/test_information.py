# SPDX-License-Identifier: Apache-2.0
"""Every estimator against a truth that is known in closed form."""

import math

import numpy as np
import pytest
import torch

from ibnorm_hf.analysis.information import (
    channel_information,
    ib_value,
    knn_mutual_information,
    matrix_entropy,
    matrix_mutual_information,
    noise_curve,
    soft_entropy,
    usable_information,
)
from ibnorm_hf.analysis.renyi import RenyiPlane


def normal_pair(rho, samples, seed=0):
    draw = np.random.default_rng(seed).standard_normal((2, samples))
    return draw[0], rho * draw[0] + math.sqrt(1 - rho**2) * draw[1]


def clusters(classes=8, samples=800, seed=0, apart=20.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    return apart * torch.eye(classes)[labels] + torch.randn(samples, classes, generator=generator), labels


@pytest.mark.parametrize(("rho", "truth"), [(0.0, 0.0), (0.5, 0.1438), (0.9, 0.8304)])
def test_knn_normal(rho, truth):
    assert float(knn_mutual_information(*normal_pair(rho, 4000))) == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize(("degrees", "truth"), [(1, 0.2242), (3, 0.0424), (10, 0.0046)])
def test_knn_student(degrees, truth):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 4000)) / np.sqrt(rng.chisquare(degrees, 4000) / degrees)
    assert float(knn_mutual_information(x, y)) == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize(("half", "truth"), [(0.1, 1.7094), (0.5, 0.5), (1.0, 0.25)])
def test_knn_uniform_noise(half, truth):
    rng = np.random.default_rng(2)
    x = rng.random(4000)
    assert float(knn_mutual_information(x, x + rng.uniform(-half, half, 4000))) == pytest.approx(truth, abs=0.05)


def test_knn_refuses_what_it_cannot_do():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="32 joint dimensions"):
        knn_mutual_information(rng.random((50, 16)), rng.random((50, 16)))
    steps = rng.integers(0, 5, 200)
    with pytest.raises(ValueError, match="x has a coordinate whose values repeat"):
        knn_mutual_information(steps, rng.uniform(steps, steps + 2.0))
    with pytest.raises(ValueError, match="more than k samples"):
        knn_mutual_information([1.0], [2.0])
    assert float(knn_mutual_information(np.ones(50), rng.random(50))) == 0


def test_knn_is_blind_to_increasing_maps():
    from scipy.special import ndtr

    x, y = normal_pair(0.9, 2000)
    plain = float(knn_mutual_information(x, y))
    cube = x**3
    for mapped in (np.arcsinh(x), ndtr(x), (cube - cube.mean()) / cube.std()):
        assert float(knn_mutual_information(mapped, y)) == pytest.approx(plain, abs=0.03)


def test_knn_agrees_with_a_plain_count():
    """The definition, by all pairs of a small sample, on scores made from ranks."""
    from scipy.special import digamma
    from scipy.stats import norm

    x, y = (norm.ppf((np.argsort(np.argsort(side)) + 0.5) / 120) for side in normal_pair(0.7, 120))
    dx, dy = abs(x[:, None] - x), abs(y[:, None] - y)
    radius = np.sort(np.maximum(dx, dy), 1)[:, 4]
    counts = [(d < radius[:, None]).sum(1) for d in (dx, dy)]  # the point itself included
    truth = digamma(4) + digamma(120) - np.mean(digamma(counts[0]) + digamma(counts[1]))
    assert float(knn_mutual_information(x, y, k=4)) == pytest.approx(truth, abs=1e-9)


def test_usable_reads_all_of_separated_classes_and_nothing_of_shuffled_ones():
    features, labels = clusters()
    found = usable_information(features, labels)
    assert math.log(8) - 0.03 < float(found) <= math.log(8) + 1e-12
    assert found.shuffled == pytest.approx(0, abs=0.02)
    assert found.samples == 800
    assert found == usable_information(features, labels)
    assert found == usable_information(features, labels + 4000), "only which labels agree counts"


def covers_zero(found):
    return found.interval[0] <= 0 <= found.interval[1]


def test_independence_gives_zero_within_the_interval_in_95_of_100_seeds():
    usable = knn = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(120, 3, generator=generator)
        labels = torch.randint(4, (120,), generator=generator)
        usable += covers_zero(usable_information(features, labels, seed=seed, folds=3, penalties=(0.1,), shuffle=False))
        knn += covers_zero(knn_mutual_information(*normal_pair(0.0, 300, seed), seed=seed))
    assert usable >= 95
    assert knn >= 95


def test_a_vocabulary_of_4096_labels_is_read():
    """Labels that a token's features tell exactly, each seen twice or so: much is read, and never more than ln 4096."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(4096), torch.arange(4096)])
    codes = torch.randn(4096, 24, generator=generator)
    features = codes[labels] + 0.05 * torch.randn(8192, 24, generator=generator)
    options = {"folds": 2, "penalties": (1e-4,), "iterations": 8, "shuffle": False}
    found = usable_information(features, labels + 10**6, seed=3, **options)
    assert 0.5 < float(found) < math.log(4096)
    assert found.shuffled is None


def test_every_bound_loses_by_processing():
    """I(f(X);Y) at most I(X;Y): for the probe, the channel and nearest neighbours, by dropping and by rounding."""
    x, y = normal_pair(0.8, 1000)
    wide = np.stack([x, np.random.default_rng(5).standard_normal(1000)], 1)
    labels = torch.as_tensor((y > 0).astype(int) + (y > 1))
    full = usable_information(wide, labels)
    for less in (wide[:, 1:], np.sign(wide), np.abs(wide)):
        assert float(usable_information(less, labels)) < float(full)
    assert float(channel_information(0.5 * wide, 1.0)) < float(channel_information(wide, 1.0))
    assert float(knn_mutual_information(np.abs(x), y)) < float(knn_mutual_information(x, y)) - 0.1


def test_a_noise_curve_falls_from_level_to_level():
    features, _ = clusters(samples=200, apart=2.0)
    curve = noise_curve(features, (3.0, 0.1, 1.0, 1.0))
    assert list(curve) == [0.1, 1.0, 3.0]
    values = [float(estimate) for estimate in curve.values()]
    assert values == sorted(values, reverse=True) and values[0] > 2 * values[-1]
    assert curve[1.0] == channel_information(features, 1.0)
    with pytest.raises(ValueError, match="at least one level"):
        noise_curve(features, ())


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_knn_agrees_with_ennemi(rho):
    """The same estimator by other people: MIT, ennemi.estimate_mi."""
    ennemi = pytest.importorskip("ennemi")
    from scipy.special import ndtri
    from scipy.stats import rankdata

    scores = [ndtri((rankdata(side) - 0.5) / 1500) for side in normal_pair(rho, 1500)]
    theirs = float(ennemi.estimate_mi(scores[1], scores[0], k=5, preprocess=False)[0, 0])
    assert float(knn_mutual_information(*scores, k=5)) == pytest.approx(theirs, abs=0.01)


def test_usable_loses_by_processing_and_doubles_with_copies():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(4, (2, 2000), generator=generator)
    noisy = [3 * torch.eye(4)[side] + torch.randn(2000, 4, generator=generator) for side in labels]
    one = usable_information(noisy[0], labels[0])
    assert float(usable_information(noisy[0][:, :1], labels[0])) < float(one)
    both = usable_information(torch.cat(noisy, 1), labels[0] * 4 + labels[1])
    assert float(both) == pytest.approx(2 * float(one), rel=0.1)


def test_channel_is_exact_for_a_covariance():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(raw.T.cov()), (raw - raw.mean(0)).T, upper=False).T
    mix = torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0.5, 0.1]], dtype=torch.float64)
    for noise in (0.01, 0.5, 3.0):
        truth = 0.5 * float(torch.logdet(torch.eye(3, dtype=torch.float64) + mix @ mix.T / noise**2))
        assert float(channel_information(white @ mix.T, noise)) == pytest.approx(truth, rel=1e-10)
    two = torch.block_diag(mix[:1, :1], mix[:1, :1])
    single, double = channel_information(white[:, :1] * 2, 0.5), channel_information(white[:, :2] @ two, 0.5)
    assert float(double) == pytest.approx(2 * float(single), rel=1e-10)
    assert float(channel_information(white[:, :2], 0.5)) < float(channel_information(white, 0.5))


def test_channel_interval_covers_the_truth():
    truth, inside = 0.5 * 4 * math.log(1 + 4), 0
    for seed in range(100):
        low, high = channel_information(np.random.default_rng(seed).standard_normal((500, 4)), 0.5).interval
        inside += low <= truth <= high
    assert 88 <= inside <= 99


def test_renyi_entropy_of_equal_and_of_distant_points():
    apart = 1e3 * torch.eye(16)
    assert float(matrix_entropy(apart, bandwidth=1.0)) == pytest.approx(math.log(16), abs=1e-9)
    assert float(matrix_entropy(torch.ones(16, 3))) == pytest.approx(0, abs=1e-9)
    labels = torch.arange(16) % 4
    features = 1e3 * torch.eye(4)[labels]
    assert float(matrix_mutual_information(features, labels, bandwidth=1.0)) == pytest.approx(math.log(4), abs=1e-9)


def test_the_renyi_plane_is_the_three_pairs_at_once():
    features, labels = clusters(apart=2.0, samples=120)
    inputs = features[:, :3] ** 3
    found = RenyiPlane(labels, inputs).of(features, beta=0.25, groups=4, bandwidth=3.0)
    for name, other in (("labels", labels), ("input", inputs)):
        alone = matrix_mutual_information(features, other, groups=4, bandwidth=3.0)
        assert float(found[name]) == pytest.approx(float(alone), abs=1e-9)
        assert found[name].interval == pytest.approx(alone.interval, abs=1e-9)
    both = [found[name].value for name in ("labels", "input")]
    assert float(found["ib"]) == pytest.approx(both[0] - 0.25 * both[1])
    alone = matrix_mutual_information(features, labels, groups=0, bandwidth=3.0)
    assert found["labels"].shuffled == pytest.approx(alone.shuffled)
    assert found["ib"].shuffled == pytest.approx(alone.shuffled - 0.25 * both[1])
    assert RenyiPlane(labels, inputs).of(features, groups=0)["ib"].interval is None


def test_renyi_of_independent_normals_is_what_is_known():
    bits = []
    for seed in range(3):
        draw = np.random.default_rng(seed).standard_normal((2, 300, 8))
        bits.append(float(matrix_mutual_information(*draw, groups=0)) / math.log(2))
    assert np.mean(bits) == pytest.approx(0.48, abs=0.05)


def test_the_order_of_samples_does_not_count():
    features, labels = clusters(apart=2.0, samples=200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(9))
    for estimator in (matrix_entropy, soft_entropy, lambda t: channel_information(t, 1.0)):
        assert float(estimator(features[order])) == pytest.approx(float(estimator(features)), abs=1e-9)
    paired = matrix_mutual_information(features, labels, groups=0)
    assert float(matrix_mutual_information(features[order], labels[order], groups=0)) == pytest.approx(float(paired))
    assert paired.interval is None
    assert paired.shuffled < paired.value


def test_soft_entropy_is_blind_to_scale_and_bounded():
    features, _ = clusters(apart=1.0, samples=300)
    for factor in (2.0**-600, 0.25, 2.0**600):
        assert float(soft_entropy(features.double() * factor)) == float(soft_entropy(features.double()))
    spread, one = soft_entropy(features, anchors=32), soft_entropy(features[:1], anchors=32)
    assert one.interval is None
    assert float(one) < float(spread) < math.log(32)
    assert float(soft_entropy(torch.zeros(5, 3), anchors=32)) == pytest.approx(math.log(32))


def test_ib_value_is_the_difference():
    features, labels = clusters(apart=3.0, samples=200)
    label, channel = usable_information(features, labels), channel_information(features, 1.0)
    found = ib_value(features, labels, beta=0.25, noise=1.0)
    assert float(found) == pytest.approx(label.value - 0.25 * channel.value)
    assert found.name == "IB value (ours)"
    assert found.interval[0] < float(found) < found.interval[1]
    assert float(ib_value(features, labels, beta=0, noise=1.0)) == pytest.approx(float(label))
    renyi = ib_value(features, labels, inputs=features, groups=0)
    parts = [float(matrix_mutual_information(features, other, groups=0)) for other in (labels, features)]
    assert float(renyi) == pytest.approx(parts[0] - 0.5 * parts[1])
    for wrong in ({"beta": 1.5, "noise": 1.0}, {}, {"noise": 1.0, "inputs": features}):
        with pytest.raises(ValueError):
            ib_value(features, labels, **wrong)


FEATURES = torch.arange(24.0).reshape(12, 2) ** 1.5
LABELS = torch.arange(12) % 2
ALL = {
    "usable": lambda t, y: usable_information(t, y),
    "channel": lambda t, y: channel_information(t, 1.0),
    "entropy": lambda t, y: matrix_entropy(t),
    "matrix": lambda t, y: matrix_mutual_information(t, y),
    "soft": lambda t, y: soft_entropy(t),
    "knn": lambda t, y: knn_mutual_information(t, t),
    "ib": lambda t, y: ib_value(t, y, noise=1.0),
}


@pytest.mark.parametrize("name", ALL)
def test_nan_is_refused_and_every_result_is_whole(name):
    for bad in (math.nan, math.inf):
        spoilt = FEATURES.clone()
        spoilt[3, 1] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            ALL[name](spoilt, LABELS)
    found = ALL[name](FEATURES, LABELS)
    assert math.isfinite(float(found))
    assert found.samples == 12
    assert found.seed == 0
    assert found.shuffled is not None
    assert found.interval[0] <= found.value <= found.interval[1]


@pytest.mark.parametrize("name", ["usable", "channel", "entropy", "matrix"])
def test_one_sample_and_a_constant_layer_hold_nothing(name):
    assert float(ALL[name](FEATURES[:1], LABELS[:1])) == pytest.approx(0, abs=1e-12)
    assert float(ALL[name](torch.ones(12, 2), LABELS)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["usable", "matrix"])
def test_one_class_holds_nothing(name):
    assert float(ALL[name](FEATURES, torch.zeros(12, dtype=torch.long))) == pytest.approx(0, abs=1e-12)
