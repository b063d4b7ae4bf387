# SPDX-License-Identifier: Apache-2.0
"""The registry of normalizations: what is known of each, and which class computes it over which area.

A norm is one file (or one more class of ``rivals.py``): the class, and a ``NormSpec`` registered right below it.
``create_norm``, the configs, surgery, recipes, model cards, README's table and most tests ask this registry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from .sites import Site

AREAS = ("token", "batch", "channel")

# How much of a norm is its authors': the word that stands beside it in every table and card.
STATUSES = {
    "as published": "formula and start values are the publication's",
    "sourced": "the formula is the publication's; its place or its start values are not",
    "reconstructed": "the publication's formula could not be read; ours follows from what is known of it",
    "ours": "an ablation of this project",
}


@dataclass(frozen=True)
class NormSpec:
    """What there is to know about one normalization.

    Args:
        name: the canonical name, lower case with hyphens.
        classes: area -> class; an area that is absent is refused. A norm that is not defined over a batch names its
            class over channels for the area ``batch``, which is then what stands in a ResNet.
        meaning: what it does, a verb first, for a token: "scales each token to unit RMS".
        formula: of the features x of a token, before or with the affine (weight w, bias b).
        status: a key of ``STATUSES``.
        start: the values that its parameters start from, in words.
        citation: one BibTeX entry.
        family: norms of one family compute the same function up to their options; the name itself where empty.
        options: flags beyond ``norm_affine`` and ``norm_bias`` that mean something for it.
        arguments: of the class, and attributes of its modules, that tell this norm from others of the same class.
        confidence: how sure a reconstructed formula is.
        batch_meaning: as ``meaning``, over a batch; empty where the area ``batch`` takes the channels.
        decayed: parameters that weight decay touches; all others of a norm never decay.
        start_at: (where the norm stands) -> arguments of the class, for norms whose start values are published by site.
        embedding_scale: hosts (model types) whose embeddings are published with a learned factor beside this norm.
        standardizes: it divides by a spread, centred or not, and does no more: what Theorem 1 holds IBNorm against.
    """

    name: str
    classes: Mapping[str, type[nn.Module]]
    meaning: str
    formula: str
    status: str
    start: str
    citation: str
    family: str = ""
    options: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    confidence: str = ""
    batch_meaning: str = ""
    decayed: tuple[str, ...] = ()
    start_at: Callable[[Site], Mapping[str, Any]] | None = None
    embedding_scale: tuple[str, ...] = ()
    standardizes: bool = False

    def __post_init__(self) -> None:
        assert self.status in STATUSES and set(self.classes) <= set(AREAS), self.name
        if not self.family:
            object.__setattr__(self, "family", self.name)

    def meaning_over(self, area: str) -> str:
        """``meaning`` for an area: of a token, of a pixel's channels, or of a channel over the batch."""
        if area == "batch" and self.batch_meaning:
            return self.batch_meaning
        return self.meaning if area == "token" else self.meaning.replace("token", "pixel")


SPECS: dict[str, NormSpec] = {}


def register_norm(spec: NormSpec) -> NormSpec:
    """Enter a norm; its name must be new."""
    assert spec.name not in SPECS, spec.name
    SPECS[spec.name] = spec
    return spec


def register_over_batch(name: str, cls: type[nn.Module], meaning: str) -> None:
    """Say which class computes a registered norm over the batch."""
    SPECS[name] = replace(SPECS[name], classes={**SPECS[name].classes, "batch": cls}, batch_meaning=meaning)
