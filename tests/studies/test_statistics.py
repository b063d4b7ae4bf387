# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from scipy import stats

from ibnorm_hf.studies.statistics import (
    compare,
    dunnett_p,
    dunnett_quantile,
    half_width,
    judge,
    pooled_error,
    seeds_for,
    sign_flip,
    uneven_errors,
)
from ibnorm_hf.studies.verdict import judge_rows

from .fakes import fake_rows

ARMS = ("base", "b", "c", "d", "e", "f")


@pytest.mark.parametrize(("comparisons", "freedom", "q"), [(3, 10, 2.5), (6, 24, 3.3), (9, 36, 3.5)])
def test_dunnett_is_the_multivariate_t_of_scipy(comparisons, freedom, q):
    correlation = np.full((comparisons, comparisons), 0.5)
    np.fill_diagonal(correlation, 1)
    joint = stats.multivariate_t(shape=correlation, df=freedom)
    inside = joint.cdf([q] * comparisons, lower_limit=[-q] * comparisons, random_state=0)
    assert dunnett_p(q, comparisons, freedom) == pytest.approx(1 - inside, abs=3e-4)


@pytest.mark.parametrize("freedom", [2, 4, 40])
def test_one_comparison_is_students_t(freedom):
    assert dunnett_p(3.0, 1, freedom) == pytest.approx(2 * stats.t.sf(3.0, freedom), rel=1e-3)
    assert dunnett_quantile(1, freedom) == pytest.approx(stats.t.isf(0.005, freedom), rel=1e-3)


def test_the_pooled_error_is_that_of_a_two_way_fit():
    table = np.random.default_rng(0).normal(size=(4, 6))
    design = np.array([[*np.eye(4)[i], *np.eye(6)[j]] for i, j in itertools.product(range(4), range(6))])
    fit, *_ = np.linalg.lstsq(design, table.ravel(), rcond=None)
    rest = table.ravel() - design @ fit
    spread, freedom = pooled_error(table)
    assert freedom == 15
    assert spread == pytest.approx(np.sqrt(rest @ rest / 15))


def test_errors_that_differ_are_seen_and_equal_ones_are_not():
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(100, 1, 5))
    even = shared + generator.normal(size=(100, 8, 5))
    assert sum(uneven_errors(table)[0] for table in even) <= 1
    uneven = even.copy()
    uneven[:, 6:] += 9 * generator.normal(size=(100, 2, 5))
    found = [uneven_errors(table) for table in uneven]
    assert sum(answer for answer, _ in found) >= 95
    assert sum(errors.argmax() >= 6 for _, errors in found) >= 99
    # Two arms have one error between them, however they spread; equal values have none.
    assert not uneven_errors(uneven[0, 5:7])[0] and not uneven_errors(np.ones((4, 5)))[0]


def test_more_seeds_detect_smaller_differences_and_seeds_for_is_their_inverse():
    widths = [half_width(1.0, 7, n) for n in (3, 5, 8)]
    assert widths == sorted(widths, reverse=True)
    # Bonferroni's, which are a little wider: 3.29, 2.24, 1.68.
    assert widths == pytest.approx([3.18, 2.19, 1.65], abs=0.02)
    for n in (3, 5, 8, 40):
        assert seeds_for(half_width(1.0, 7, n) * 1.0001, 1.0, 7) == n
    assert seeds_for(0.0, 1.0, 7) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.3, -0.1, "better"),
        (0.1, 0.3, "worse"),
        (-0.04, 0.03, "equivalent"),
        (-0.04, -0.01, "equivalent"),
        (-0.06, 0.03, "undecided"),
        (-0.06, -0.04, "better"),
    ],
)
def test_the_verdict_of_an_interval(low, high, verdict):
    assert judge(low, high, margin=0.05) == verdict


def test_the_sign_flip_test_is_exact():
    paired = np.array([1.0, 2, 3, 4, 5, 6, 7, -1])
    flips = [abs(np.dot(signs, paired)) >= paired.sum() for signs in itertools.product((-1, 1), repeat=8)]
    assert sign_flip(paired) == pytest.approx(np.mean(flips))
    assert sign_flip(np.abs(paired)) == 2 / 256
    assert sign_flip(paired[:7]) is None


def test_identical_arms_get_no_false_verdict():
    wrong = 0
    for random in range(100):
        report = judge_rows(fake_rows(dict.fromkeys(ARMS, 3.0), random=random), "base", 0.001)
        assert report["refused"] == []
        wrong += any(arm["verdict"] in ("better", "worse") for arm in report["arms"].values())
    assert wrong <= 1


def test_the_intervals_of_a_study_cover_together():
    truth = dict(zip(ARMS, (3.0, 2.98, 3.0, 3.01, 3.05, 2.9), strict=True))
    covered = 0
    for random in range(500):
        arms = judge_rows(fake_rows(truth, random=1000 + random), "base", 0.01)["arms"]
        covered += all(arms[a]["low"] <= truth[a] - 3.0 <= arms[a]["high"] for a in ARMS)
    assert 0.98 <= covered / 500 <= 0.997


def test_a_planted_gain_a_loss_and_twins_are_found():
    truth = {"base": 3.0, "gain": 2.94, "loss": 3.06, "twin": 3.0}
    arms = judge_rows(fake_rows(truth, random=1), "base", 0.02)["arms"]
    assert (arms["gain"]["verdict"], arms["loss"]["verdict"]) == ("better", "worse")
    few = judge_rows(fake_rows(truth, random=1), "base", 0.012)["arms"]["twin"]
    assert few["verdict"] == "undecided" and few["seeds_to_decide"] > 5
    many = judge_rows(fake_rows(truth, random=1, seeds=40), "base", 0.012)["arms"]["twin"]
    assert many["verdict"] == "equivalent"


def test_shuffling_the_pairing_widens_the_intervals():
    generator = np.random.default_rng(0)
    blocks = generator.normal(0, 0.1, 6)
    paired = {arm: (blocks + generator.normal(0, 0.01, 6)).tolist() for arm in ARMS}
    shuffled = {arm: generator.permutation(row).tolist() for arm, row in paired.items()}
    width = {name: compare(t, "base", margin=0.01)["b"].high for name, t in (("p", paired), ("s", shuffled))}
    mean = {name: compare(t, "base", margin=0.01)["b"].difference for name, t in (("p", paired), ("s", shuffled))}
    assert mean["p"] == pytest.approx(mean["s"])
    assert width["s"] - mean["s"] > 3 * (width["p"] - mean["p"])


def test_an_arm_that_diverges_is_never_better_and_does_not_blur_the_others():
    rows = fake_rows({"base": 3.0, "gain": 2.9, "wild": 2.5}, random=3)
    clean = judge_rows([r for r in rows if r.arm != "wild"], "base", 0.01)["arms"]["gain"]
    broken = [r if (r.arm, r.seed) != ("wild", 2) else type(r)(**{**r.__dict__, "value": float("inf")}) for r in rows]
    arms = judge_rows(broken, "base", 0.01)["arms"]
    assert arms["wild"]["diverged"] == 1 and arms["wild"]["verdict"] in ("worse", "undecided")
    assert arms["gain"]["verdict"] == "better"
    assert arms["gain"]["high"] - arms["gain"]["low"] == pytest.approx(clean["high"] - clean["low"], rel=0.3)


def test_a_verdict_that_flips_between_budgets_is_reported():
    rows = fake_rows({"base": 3.0, "x": 2.9}, random=1) + [
        type(r)(**{**r.__dict__, "budget": 3.0}) for r in fake_rows({"base": 2.8, "x": 2.9}, random=2)
    ]
    report = judge_rows(rows, "base", 0.01)
    assert report["flips"] == ["x flips: better at budget 1, worse at budget 3"]
    assert report["arms"]["x"]["verdict"] == "worse"


@pytest.mark.parametrize("bad", [{"base": [1.0], "b": [1.0]}, {"base": [1.0, 2.0], "b": [1.0, float("nan")]}])
def test_what_cannot_be_compared_is_an_error(bad):
    with pytest.raises(ValueError, match=r"seeds|finite"):
        compare(bad, "base", margin=0.1)


@pytest.mark.parametrize("arms", [2, 5, 40])
@pytest.mark.parametrize("width", [0.004, 0.02, 0.1, 1.0])
def test_the_seeds_for_a_width_are_the_fewest_by_the_quantile_itself(arms, width):
    found = seeds_for(width, 0.05, arms)
    if found is None:
        assert half_width(0.05, arms, 10_000) >= width
    else:
        assert half_width(0.05, arms, found) < width
        assert found == 2 or half_width(0.05, arms, found - 1) >= width
