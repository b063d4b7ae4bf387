# SPDX-License-Identifier: Apache-2.0
"""Whether an IBNorm is a LayerNorm in all but name: how far its output is from LayerNorm's, on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.run import Run
from ...modeling.norms import IBNorm
from ...modeling.recognize import iter_norms

NEARLY = 1e-2  # below it, of outputs whose spread is about 1, nobody would see the difference
ROWS = 8  # of held-out data that are looked at


@torch.no_grad()
def distance_to_layernorm(model: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Largest absolute difference between the output of each IBNorm and that of a LayerNorm of its eps, gain and bias.

    Args:
        model: whose norms over a token's features are watched; norms over batches have no LayerNorm to be held against.
        run: calls the model, in eval mode.

    Returns:
        By module name, in the unit of the output; norms that were not called are left out.
    """
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def compare(module: IBNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].float()
            weight, bias = (None if t is None else t.float() for t in (module.weight, module.bias))
            plain = F.layer_norm(x, x.shape[-1:], weight, bias, module.eps) * module.output_scale
            found = (output.float() - plain).abs().max()
            largest[name] = torch.maximum(largest[name], found) if name in largest else found

        return compare

    hooks = [
        module.register_forward_hook(watch(name))
        for name, modules in iter_norms(model)
        for module in modules
        if isinstance(module, IBNorm)
    ]
    try:
        if hooks:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: value.item() for name, value in largest.items()}


def likeness(distances: dict[str, float], unit: str, count: int) -> dict[str, Any]:
    """What ``eval/norms.json`` holds: distances, on how much data, and which norms are LayerNorms in all but name."""
    return {
        "largest_difference_to_layernorm": distances,
        "measured_on": f"{count:,} held-out {unit}s",
        "layernorm_in_all_but_name": [name for name, value in distances.items() if value < NEARLY],
    }


def norm_lines(run: str | Path) -> list[str]:
    """At most one line for the end of a run: none where every norm does something, or none was measured."""
    content = Run(run).results("norms")
    alike, all_of_them = content.get("layernorm_in_all_but_name"), content.get("largest_difference_to_layernorm")
    if not alike or not isinstance(all_of_them, dict):
        return []
    most = max(all_of_them.get(name, 0.0) for name in alike)
    return [
        f"norms: lambda does nothing in {len(alike)} of {len(all_of_them)} IBNorms: they are LayerNorms in all but "
        f"name; their outputs differ from LayerNorm's by at most {most:.2g}, on {content['measured_on']}"
    ]
