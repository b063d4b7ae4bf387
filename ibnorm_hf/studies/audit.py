# SPDX-License-Identifier: Apache-2.0
"""Before a study runs: each arm's model at step 0, held against the baseline's and transformers' own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.paths import digest
from ..modeling.recognize import family_of, iter_norms
from ..modeling.scaled_embedding import ScaledEmbedding
from ..training.loop.decay import decay_groups


@dataclass(frozen=True)
class Audit:
    """One arm at step 0. ``outside`` counts the parameters outside its norms and outside what these are published with
    (the scale of the embeddings, with dyt and derf); ``decay_sha256`` names those of them that decay.

    ``output_rms`` is that of the logits, ``gradient_norm`` that of all parameters, both on the same few samples.
    """

    arm: str
    norm: str
    parameters: int
    outside: int
    decayed: int
    decay_sha256: str
    output_rms: float
    gradient_norm: float
    loss: float

    def line(self) -> dict[str, Any]:
        """A row of the report's table."""
        return {
            "arm": self.arm,
            "norm": self.norm,
            "parameters": f"{self.parameters:,}",
            "outside the norms": f"{self.outside:,}",
            "decayed": f"{self.decayed:,}",
            "output RMS": f"{self.output_rms:.4g}",
            "gradient norm": f"{self.gradient_norm:.4g}",
            "loss": f"{self.loss:.4f}",
        }


def audit(arm: str, model: Any, inputs: dict[str, Tensor]) -> Audit:
    """Measure an arm's freshly made model on a few samples with labels; the model is left as it was.

    Raises:
        UserError: the output or the gradient is no number.
    """
    groups = decay_groups(model)
    inside = {id(p) for _, copies in iter_norms(model) for module in copies for p in module.parameters()}
    named = dict(model.named_parameters())
    # What a norm is published with is its own, too.
    inside |= {id(module.embed_scale) for module in model.modules() if isinstance(module, ScaledEmbedding)}
    outside = {name: p for name, p in named.items() if id(p) not in inside}
    was = model.training
    model.eval()
    out = model(**inputs)
    out.loss.backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in named.values() if p.grad is not None))
    rms = float(out.logits.detach().double().square().mean().sqrt())
    model.zero_grad(set_to_none=True)
    model.train(was)
    if not (math.isfinite(norm) and math.isfinite(rms)):
        raise UserError(f"arm {arm} is no number at step 0: output RMS {rms}, gradient norm {norm}")
    decayed = [name for name in groups.decay if name in outside]
    return Audit(
        arm=arm,
        norm=str(getattr(model.config, "norm_type", None) or "its own"),
        parameters=sum(p.numel() for p in named.values()),
        outside=sum(p.numel() for p in outside.values()),
        decayed=sum(named[name].numel() for name in groups.decay),
        decay_sha256=digest(sorted(decayed)),
        output_rms=rms,
        gradient_norm=norm,
        loss=float(out.loss.detach()),
    )


def differs_from_vanilla(model: Any, inputs: dict[str, Tensor]) -> str | None:
    """A sentence where the baseline's logits are not those of transformers' own class with the same weights.

    None where they agree: bit for bit, or but for the last digits where a fused kernel sums in another order. A
    baseline whose norm is not the architecture's own (see ``has_own_norm``) differs.
    """
    vanilla = _vanilla(model)
    if vanilla is None:
        return None
    missing, unexpected = vanilla.load_state_dict(model.state_dict(), strict=False)
    if missing or unexpected:
        return f"the baseline's weights are not those of transformers' own class: {(missing or unexpected)[0]}"
    given = {key: value for key, value in inputs.items() if key != "labels"}
    was = model.training
    model.eval()
    vanilla.eval()
    with torch.no_grad():
        ours, theirs = model(**given).logits, vanilla(**given).logits
    model.train(was)
    gap = (ours.double() - theirs.double()).abs().max().item()
    if gap <= 1e-5 * max(1.0, theirs.abs().max().item()):
        return None
    return f"the baseline's logits differ from transformers' own model by up to {gap:.3g} at step 0"


def has_own_norm(model: Any) -> bool:
    """Whether the model's norm is the one that transformers' own class has, so that the two must agree.

    One that is scaled is not, whatever its name.
    """
    vanilla = _vanilla(model)
    if vanilla is None:
        return True
    if getattr(model.config, "norm_depth_scale", None) or getattr(model.config, "norm_embedding_scale", None):
        return False
    families = {family_of(copies[0]) for _, copies in iter_norms(vanilla)}
    return getattr(model.config, "norm_type", None) in families


def _vanilla(model: Any) -> Any:
    """transformers' own model of the same sizes; None where ``model`` is one."""
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = model.config.model_type.removeprefix("ibnorm_")
    if kind == model.config.model_type:
        return None
    mine = {"model_type", "architectures", "auto_map", "transformers_version"}
    sizes = {key: value for key, value in model.config.to_dict().items() if key not in mine}
    auto: Any = AutoModelForImageClassification if model.main_input_name == "pixel_values" else AutoModelForCausalLM
    return auto.from_config(CONFIG_MAPPING[kind](**sizes))


def unfair(audits: list[Audit]) -> list[str]:
    """A sentence for each way in which arms differ beyond their norms."""
    first, found = audits[0], []
    for other in audits[1:]:
        if other.outside != first.outside:
            found.append(
                f"the parameters differ between {first.arm} ({first.outside:,}) and {other.arm} "
                f"({other.outside:,}) by more than their norms"
            )
        if other.decay_sha256 != first.decay_sha256:
            found.append(f"the parameters that decay differ between {first.arm} and {other.arm}")
    return found
