# SPDX-License-Identifier: Apache-2.0
"""What a model computes on a small batch: an export is checked by that, and not by the names of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import UserError

_ROWS, _LENGTH, _SIDE = 2, 12, 32
_TOLERANCE = 1e-3  # of the largest output, in float32; merging an adapter rounds at about 1e-6
_LOW = {torch.bfloat16: 0.05, torch.float16: 0.01}


@torch.no_grad()
def probe(model: Any) -> Tensor | None:
    """The first output (logits, or hidden states) on a batch that is always the same, in eval mode; float32.

    None where a model takes neither token ids nor pixels alone, so that nothing can be compared.
    """
    generator = torch.Generator().manual_seed(0)
    config = model.config.get_text_config()
    if model.main_input_name == "input_ids":
        length = min(_LENGTH, int(getattr(config, "max_position_embeddings", None) or _LENGTH))
        choices = (2,) if type(model).__name__.endswith("ForMultipleChoice") else ()
        ids = torch.randint(0, int(config.vocab_size), (_ROWS, *choices, length), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    elif model.main_input_name == "pixel_values":
        side = getattr(config, "image_size", None) or _SIDE
        height, width = (side, side) if isinstance(side, int) else side
        inputs = {"pixel_values": torch.randn(_ROWS, config.num_channels, height, width, generator=generator)}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    else:
        return None
    was_training = model.training
    model.eval()
    output = model(**{name: value.to(model.device) for name, value in inputs.items()})
    model.train(was_training)
    return output[0].float().cpu()


def require_same_function(model: Any, wanted: Tensor | None, folder: Path) -> None:
    """Load what was written to ``folder`` in the class of ``model``, and compare what it computes with ``wanted``.

    Raises:
        UserError: with exit code 1, the export computes something else than the trained model.
    """
    if wanted is None:
        return
    again = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True, trust_remote_code=False)
    found = probe(again)
    most = wanted.abs().max().item()
    apart = float("inf") if found is None or found.shape != wanted.shape else (found - wanted).abs().max().item()
    if not apart <= _LOW.get(model.dtype, _TOLERANCE) * max(most, 1e-6):
        raise UserError(
            f"the export computes something else than the trained model (outputs up to {most:.3g}, apart by "
            f"{apart:.3g}), so it is not kept; publish the adapter and its base instead",
            exit_code=1,
        )
