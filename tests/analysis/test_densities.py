# SPDX-License-Identifier: Apache-2.0
"""Proposition 4 by quadrature against closed forms, and the figures of densities."""

import csv
import math

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import digamma, exp1

from ibnorm_hf.analysis.densities import curves, draw_densities, entropy_change

LAPLACE = {
    # E ln g' for |u| exponential of rate r = lambda / scale.
    "ibnorm-l": lambda r: -math.exp(r) * exp1(r),
    "ibnorm-t": lambda r: -2 * ((digamma(r / 4 + 0.5) - digamma(r / 4)) / 2 - 1 / r),
    "ibnorm-s": lambda r: -2 * math.exp(r) * exp1(r),
}


@pytest.mark.parametrize("name", LAPLACE)
@pytest.mark.parametrize(("scale", "norm_lambda"), [(1.0, 4.0), (4.0, 3.0), (20.0, 1.0)])
def test_laplace_closed_form(name, scale, norm_lambda):
    found = entropy_change(name, stats.laplace(scale=scale), norm_lambda)
    assert found == pytest.approx(LAPLACE[name](norm_lambda / scale), abs=1e-8)
    assert found < 0


# The inverse d(c) of each compression at lambda 1 and the slope of that inverse, written out.
BACK = {
    "ibnorm-l": (lambda c: np.sign(c) * np.expm1(abs(c)), lambda c: np.exp(abs(c)), 12.0),
    "ibnorm-t": (np.arctanh, lambda c: 1 / (1 - c * c), 1.0),
    "ibnorm-s": (lambda c: c / (1 - abs(c)), lambda c: (1 - abs(c)) ** -2.0, 1.0),
}


@pytest.mark.parametrize("name", BACK)
@pytest.mark.parametrize("family", [stats.norm, stats.laplace])
def test_entropy_of_the_compressed_density_is_what_the_proposition_says(name, family):
    """h(c) from the density of c itself, x of scale 2, lambda 4."""
    distribution, lam = family(scale=2.0), 4.0
    back, slope, bound = BACK[name]

    def entropy(c):
        with np.errstate(all="ignore"):
            density = distribution.pdf(lam * back(c / lam)) * slope(c / lam)
        return -density * math.log(density) if 0 < density < math.inf else 0.0

    half = integrate.quad(entropy, 0, bound * lam * (1 - 1e-12), limit=400, epsabs=1e-10)[0]
    said = distribution.entropy() + entropy_change(name, distribution, lam)
    assert 2 * half == pytest.approx(said, abs=1e-6)


def test_curves_are_densities_and_a_compression_lightens_the_tails():
    made = curves(samples=400)
    assert {curve.figure for curve in made} == {1, 3, 4, 5}
    for curve in made:
        assert 0.9 < np.trapezoid(curve.density, curve.points) < 1.01
    first = {(c.panel, c.label): c.kurtosis for c in made if c.figure == 1}
    for panel in {panel for panel, _ in first}:
        for short in "LTS":
            assert first[panel, f"IBNorm-{short}"] < first[panel, "standardized only"]


def test_figures_are_written_with_their_numbers(tmp_path):
    files = draw_densities(tmp_path / "deep" / "out", figures=(1, 3), samples=100)
    assert {file.name for file in files} == {f"figure{n}.{end}" for n in (1, 3) for end in ("png", "csv")}
    for file in files:
        if file.suffix == ".png":
            assert file.read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "deep" / "out" / "figure3.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 5 * 201
    assert {row["curve"] for row in rows} == {"standardized only", *(f"IBNorm-L, λ {n}" for n in (1, 2, 4, 8))}
