# SPDX-License-Identifier: Apache-2.0
"""What stands in the pictures of an analysis."""

from matplotlib.axes import Axes

from ibnorm_hf.analysis.figures import draw
from ibnorm_hf.analysis.measure import Options


def test_a_noise_curve_runs_from_little_noise_to_much(tmp_path, monkeypatch):
    """Also where the names come as a file keeps them, by letters: "10" before "3"."""
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda axes, x, *rest, **more: drawn.append(list(x)) or plot(axes, x, *rest, **more)
    )
    names = sorted(f"channel@{noise:g}" for noise in Options().noises)
    estimate = {"value": 1.0, "interval": None, "shuffled": None}
    site = {"site": "norm", "number": 1, "kind": "final", "layer": None, "input_spread": 1.0, "share_beyond": None}
    site |= {
        "share_beyond_logged": None,
        "trained": {
            **dict.fromkeys(("channel", "kurtosis", "effective_rank", "spread"), estimate),
            **dict.fromkeys(names, estimate),
        },
    }
    made = {"sites": [site, {**site, "site": "last", "number": 2}], "images": False, "samples": 8}
    draw({"layernorm": [made]}, [], tmp_path)
    assert sorted(Options().noises) in drawn and (tmp_path / "noise.png").is_file()
