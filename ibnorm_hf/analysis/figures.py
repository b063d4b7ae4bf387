# SPDX-License-Identifier: Apache-2.0
"""Pictures of an analysis: information by layer with its placebo dashed, noise curves, shapes, lambda."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .differences import summary
from .measure import value_of

Records = Mapping[str, Sequence[Mapping[str, Any]]]
# Okabe and Ito's colours, told apart without red and green; markers say the same once more.
_COLOURS = ("#000000", "#e69f00", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INFINITE = "I(X;T) of a deterministic network is infinite; in its place: the channel T + N(0, 1), or kernels (Renyi)"
_INFORMATION = (
    ("usable", "I(Y;T): what a linear probe reads\n(lower bound)", "nats a sample"),
    ("ib", "IB value (ours): probe minus half\nof the channel's bound", "nats a sample"),
    ("renyi_ib", "IB value (ours): matrix Renyi,\nmedian bandwidth of each arm", "nats a sample"),
    ("renyi_ib_fixed", "IB value (ours): matrix Renyi,\none bandwidth for all arms", "nats a sample"),
    ("soft", "soft entropy of directions\n(128 anchors)", "nats"),
    ("neighbours", "accuracy of the 5 nearest neighbours\n(a reader by distance)", "share of samples"),
)
_SHAPES = (
    ("kurtosis", "kurtosis of a token's features\nafter the norm (Gaussian: 3)", "kurtosis"),
    ("effective_rank", "effective rank of the samples\nafter the norm", "dimensions"),
    ("spread", "spread of the features\nafter the norm", "root mean square"),
)


def draw(records: Records, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write figure2a.png, differences.png, noise.png, shape.png and lambda.png, as far as they were measured.

    ``rows`` are those of ``differences``. Returns the files.
    """
    measured = next(iter(records.values()))[0]["sites"][0]["trained"]
    files = []
    panels = [panel for panel in _INFORMATION if panel[0] in measured]
    if panels:
        title = "Information after each norm. Solid: trained. Dashed: placebo, the same inputs, norm untrained"
        files.append(_by_layer(records, panels, f"{title}\n{_INFINITE}", folder / "figure2a.png"))
    if rows:
        files.append(_differences(records, rows, folder / "differences.png"))
    if "channel" in measured:
        files.append(_noise(records, folder / "noise.png"))
    title = "Shape of activations after each norm. Solid: trained. Dashed: placebo, the same inputs, norm untrained"
    files.append(_by_layer(records, _SHAPES, title, folder / "shape.png"))
    files.append(_lambda(records, folder / "lambda.png"))
    return files


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)], "ms": 4}


def _shift(index: int) -> float:
    """Arms stand a little beside each other, so that their bars do."""
    return 0.07 * (index - 2)


def _figure(width: float, height: float) -> Any:
    # The object interface: pyplot would pick a display and keep every figure alive.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _finish(figure: Any, axes: Any, records: Records, title: str, path: Path) -> Path:
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    if "placebo" in next(iter(records.values()))[0]["sites"][0] and path.name != "lambda.png":
        for style, text in (("-", "trained"), ("--", "placebo")):
            handles.append(Line2D([], [], color="grey", ls=style))
            labels.append(text)
    seeds = sorted({len(found) for found in records.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    count += " seed" if seeds == [1] else " seeds"
    if seeds[0] == 1:
        bars = "one seed has no interval"
    else:
        bars = "mean over seeds" if path.name == "noise.png" else "bars: 95 % over seeds"
    made = next(iter(records.values()))[0]
    unit = "images" if made["images"] else "held-out tokens"
    figure.suptitle(f"{title}\n{count} an arm, {made['samples']:,} {unit}; {bars}", fontsize=10)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(labels)), fontsize=9)
    figure.savefig(path, metadata={"Software": None})
    return path


def _names(records: Records) -> list[str]:
    """What stands under the axis: layer and kind of each norm."""
    short = {"attention": "a", "mlp": "m", "final": "end", "other": ""}
    sites = next(iter(records.values()))[0]["sites"]
    names = [f"{site['layer'] or ''}{short[site['kind']]}" for site in sites]
    return names if len(set(names)) == len(names) else [str(site["number"]) for site in sites]


def _over_seeds(found: Sequence[Mapping[str, Any]], index: int, of: Callable[[Any], Any]) -> dict[str, Any] | None:
    values = [of(made["sites"][index]) for made in found]
    values = [float(v) for v in values if v is not None and not math.isnan(v)]
    return summary(values) if values else None


def _reader(name: str, *where: str) -> Callable[[Any], float]:
    """A quantity of a site, as trained, or of an arm's placebo."""

    def read(site: Any) -> float:
        for key in where:
            site = site[key]
        return value_of(site, name)

    return read


def _curve(
    axes: Any, found: Any, of: Callable[[Any], Any], style: dict[str, Any], label: str | None, shift: float = 0.0
) -> None:
    points = [(i, _over_seeds(found, i, of)) for i in range(len(found[0]["sites"]))]
    there = [(i, p) for i, p in points if p is not None]
    if not there:
        return
    places, values = [i + shift for i, _ in there], [p["value"] for _, p in there]
    bars = [(p["interval"][1] - p["interval"][0]) / 2 if p["interval"] else 0.0 for _, p in there]
    if any(bars):
        axes.errorbar(places, values, bars, label=label, lw=1.4, capsize=2, elinewidth=0.8, **style)
    else:
        axes.plot(places, values, label=label, lw=1.4, **style)


def _placed(axes: Any, records: Records, title: str, unit: str) -> None:
    names = _names(records)
    axes.set_xticks(range(len(names)), names, fontsize=7)
    plain = all(name.isdigit() for name in names)
    axes.set_xlabel("norm, in order" if plain else "layer and norm (a: before attention, m: before MLP)", fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _by_layer(records: Records, panels: Sequence[tuple[str, str, str]], title: str, path: Path) -> Path:
    rows = math.ceil(len(panels) / 3)
    figure = _figure(12, 1.5 + 3.3 * rows)
    grid = figure.subplots(rows, min(3, len(panels)), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, heading, unit) in zip(grid.flat, panels, strict=False):
        for index, (arm, found) in enumerate(records.items()):
            _curve(axes, found, _reader(name, "trained"), _style(index), arm, _shift(index))
            if "placebo" in found[0]["sites"][0]:
                # At the inputs of this arm's own runs, so that solid and dashed differ by training's gain alone.
                dashed = {**_style(index), "ls": "--", "mfc": "none", "alpha": 0.75}
                _curve(axes, found, _reader(name, "placebo", arm), dashed, None, _shift(index))
        _placed(axes, records, heading, unit)
    return _finish(figure, grid.flat[0], records, title, path)


def _differences(records: Records, rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Each arm minus the baseline by norm, trained and by the swap alone: what a verdict looks at."""
    panels = [panel for panel in (*_INFORMATION, *_SHAPES) if any(row["quantity"] == panel[0] for row in rows)]
    figure = _figure(12, 1.5 + 3.1 * math.ceil(len(panels) / 3))
    grid = figure.subplots(math.ceil(len(panels) / 3), min(3, len(panels)), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, heading, unit) in zip(grid.flat, panels, strict=False):
        axes.axhline(0, color="grey", lw=0.8)
        for index, arm in enumerate(records):
            mine = [row for row in rows if row["arm"] == arm and row["quantity"] == name]
            places = [place + _shift(index) for place in range(len(mine))]
            for part, more in (("trained", {"label": arm}), ("swap", {"ls": "--", "mfc": "none", "alpha": 0.75})):
                found = [row[part] for row in mine if part in row]
                if found:
                    bars = [(p["interval"][1] - p["interval"][0]) / 2 if p["interval"] else 0.0 for p in found]
                    words: dict[str, Any] = {**_style(index), **more}
                    axes.errorbar(places, [p["value"] for p in found], bars, lw=1.4, capsize=2, elinewidth=0.8, **words)
        _placed(axes, records, heading, unit)
    title = (
        f"Difference to {rows[0]['baseline']}, paired by seed. Solid: trained. Dashed: placebo, what a swap alone gives"
    )
    return _finish(figure, grid.flat[0], records, title, path)


def _noise(records: Records, path: Path) -> Path:
    sites = next(iter(records.values()))[0]["sites"]
    chosen = sorted({0, len(sites) // 2, len(sites) - 1})
    # A file of results has its names in the order of letters, "10" before "3".
    noises = sorted(float(name[8:]) for name in sites[0]["trained"] if name.startswith("channel@"))
    figure = _figure(4 * len(chosen), 4.6)
    grid = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, place in zip(grid, chosen, strict=True):
        for index, (arm, found) in enumerate(records.items()):
            states: list[tuple[tuple[str, ...], dict[str, Any]]] = [(("trained",), {"label": arm})]
            if "placebo" in sites[0]:
                states.append((("placebo", arm), {"ls": "--", "mfc": "none", "alpha": 0.75}))
            for where, more in states:
                values = []
                for noise in noises:
                    found_here = _over_seeds(found, place, _reader(f"channel@{noise:g}", *where))
                    values.append(math.nan if found_here is None else found_here["value"])
                axes.plot(noises, values, lw=1.4, **{**_style(index), **more})
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"norm {place + 1} of {len(sites)}: {sites[place]['site']}", fontsize=8)
        axes.set_xlabel("noise of the channel (standard deviation, units of T)", fontsize=8)
        axes.set_ylabel("at most I(T; T + noise), nats", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3, which="both")
    title = "What passes a declared channel, over its noise; without noise it would be infinite. Dashed: placebo"
    return _finish(figure, grid[0], records, title, path)


def _lambda(records: Records, path: Path) -> Path:
    figure = _figure(9, 4.6)
    left, right = figure.subplots(1, 2)
    for index, (arm, found) in enumerate(records.items()):
        style = _style(index)
        _curve(left, found, lambda site: site["input_spread"], style, arm, _shift(index))
        _curve(right, found, lambda site: site["share_beyond"], style, None, _shift(index))
        logged = {**style, "ls": ":", "mfc": "none", "alpha": 0.75}
        _curve(right, found, lambda site: site["share_beyond_logged"], logged, None, _shift(index))
    _placed(left, records, "spread of what each norm reads", "root mean square deviation")
    _placed(
        right, records, "share beyond lambda\n(solid: held-out; dotted: last logged training step)", "share of features"
    )
    if not right.lines:
        right.text(0.5, 0.5, "no arm compresses", ha="center", transform=right.transAxes)
    left.set_ylim(bottom=0)
    return _finish(figure, left, records, "How far the norms' inputs reach, against lambda", path)
