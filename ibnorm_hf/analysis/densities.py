# SPDX-License-Identifier: Apache-2.0
"""What a compression does to a distribution: densities (after the paper's figures 1, 3, 4, 5) and entropies."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import integrate, stats

from ..modeling.compression import get_compression

DISTRIBUTIONS: dict[str, Any] = {"Gaussian": stats.norm, "Exponential": stats.expon, "Laplace": stats.laplace}
VARIANTS = {"L": "ibnorm-l", "T": "ibnorm-t", "S": "ibnorm-s"}
SPREADS = (1.0, 4.0, 16.0)
LAMBDAS = (1.0, 2.0, 4.0, 8.0)
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)))


def compressed(name: str, deviations: np.ndarray, norm_lambda: float) -> np.ndarray:
    """c = lambda g(d / lambda) of float64 deviations."""
    entry = get_compression(name)
    return norm_lambda * entry.g(torch.as_tensor(deviations, dtype=torch.float64) / norm_lambda).numpy()


def log_slope(name: str, deviations: np.ndarray, norm_lambda: float) -> np.ndarray:
    """ln g'(d / lambda) of float64 deviations, without underflow for tanh."""
    u = torch.as_tensor(deviations, dtype=torch.float64) / norm_lambda
    if name == "ibnorm-t":  # 1 - tanh^2 is 0 in float64 beyond 19; its logarithm is not infinite
        return (2 * (math.log(2) - u.abs() - torch.log1p(torch.exp(-2 * u.abs())))).numpy()
    entry = get_compression(name)
    return entry.dg(u, entry.g(u)).log().numpy()


def entropy_change(name: str, distribution: Any, norm_lambda: float) -> float:
    """E ln g'(d / lambda), nats, by quadrature: h(c) - h(x) by Proposition 4, never above 0.

    Args:
        name: of the compression.
        distribution: a frozen continuous distribution of scipy, x; d is its deviation from its mean.
        norm_lambda: lambda, above 0.
    """
    mean = distribution.mean()

    def integrand(x: float) -> float:
        return float(distribution.pdf(x) * log_slope(name, np.array(x - mean), norm_lambda))

    low, high = distribution.support()
    # Split at the mean, where g' has its kink.
    return math.fsum(
        integrate.quad(integrand, *ends, epsabs=1e-11, epsrel=1e-11, limit=200)[0]
        for ends in ((low, mean), (mean, high))
        if ends[0] < ends[1]
    )


@dataclass(frozen=True)
class Curve:
    """One density of standardized values, on one panel of one figure."""

    figure: int
    panel: str
    label: str
    points: np.ndarray
    density: np.ndarray
    standard_deviation: float
    kurtosis: float


def curves(*, samples: int = 4000, seed: int = 0) -> list[Curve]:
    """Every curve of the figures: 1 is a panel a distribution, 3, 4 and 5 take L, T and S over spreads and lambdas.

    Kernel density by scipy (Scott's bandwidth) of seeded samples, after each operation and standardization.
    """
    rng = np.random.default_rng(seed)
    made = []
    for title, family in DISTRIBUTIONS.items():
        x = family.rvs(size=samples, random_state=rng)
        x = (x - x.mean()) / x.std()
        # The spread of figure 1 is 4, where the default lambdas begin to bite.
        arms = {"standardized only": 4 * x}
        arms |= {f"IBNorm-{short}": _default(name, 4 * x) for short, name in VARIANTS.items()}
        made += [_curve(1, f"{title}, spread 4", label, values) for label, values in arms.items()]
        for figure, (short, name) in zip((3, 4, 5), VARIANTS.items(), strict=True):
            for spread in SPREADS:
                panel = f"{title}, spread {spread:g}"
                made.append(_curve(figure, panel, "standardized only", spread * x))
                made += [
                    _curve(figure, panel, f"IBNorm-{short}, λ {lam:g}", compressed(name, spread * x, lam))
                    for lam in LAMBDAS
                ]
    return made


def _default(name: str, values: np.ndarray) -> np.ndarray:
    return compressed(name, values, get_compression(name).default_lambda)


def _curve(figure: int, panel: str, label: str, values: np.ndarray) -> Curve:
    z = (values - values.mean()) / values.std()
    points = np.linspace(-4, 4, 201)
    density = stats.gaussian_kde(z)(points)
    return Curve(figure, panel, label, points, density, float(values.std()), float(stats.kurtosis(z, fisher=False)))


def draw_densities(
    folder: str | Path, *, figures: Sequence[int] = (1, 3, 4, 5), samples: int = 4000, seed: int = 0
) -> list[Path]:
    """Write figures 1, 3, 4 and 5 as PNG and their numbers as CSV into a folder; returns the files."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    made, files = curves(samples=samples, seed=seed), []
    for figure in figures:
        mine = [curve for curve in made if curve.figure == figure]
        files += [_draw(figure, mine, target / f"figure{figure}.png")]
        files += [_write(mine, target / f"figure{figure}.csv")]
    return files


def _draw(number: int, mine: list[Curve], path: Path) -> Path:
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(curve.panel for curve in mine))
    rows = len(panels) // 3
    figure = Figure(figsize=(11, 1.2 + 2.9 * rows), dpi=110, layout="constrained")
    axes = dict(zip(panels, figure.subplots(rows, 3, squeeze=False).flat, strict=True))
    for panel, axis in axes.items():
        for index, curve in enumerate(c for c in mine if c.panel == panel):
            label = curve.label
            axis.plot(curve.points, curve.density, color=_COLOURS[index], ls=_DASHES[index], lw=1.5, label=label)
        axis.set_title(panel, fontsize=10)
        axis.set_xlabel("value after standardization (standard deviations)", fontsize=8)
        axis.set_ylabel("density", fontsize=8)
        axis.grid(alpha=0.3)
    what = {1: "each IBNorm at its default λ", 3: "IBNorm-L", 4: "IBNorm-T", 5: "IBNorm-S"}[number]
    figure.suptitle(
        f"Density of standardized values: plain standardization and {what}\n(spread: standard deviation of x)"
    )
    handles, labels = axes[panels[0]].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    figure.savefig(path, metadata={"Software": None})
    return path


def _write(mine: list[Curve], path: Path) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("panel", "curve", "std_before_standardizing", "kurtosis", "value", "density"))
        for curve in mine:
            for point, density in zip(curve.points, curve.density, strict=True):
                start = (curve.panel, curve.label, f"{curve.standard_deviation:.6g}", f"{curve.kurtosis:.6g}")
                writer.writerow((*start, f"{point:.4g}", f"{density:.6g}"))
    return path
