# SPDX-License-Identifier: Apache-2.0
"""What ``replace_norms`` did: one entry a swapped norm, printed as a table."""

from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Identity:
    """What a model was called before a swap, and what it is called since."""

    model: PreTrainedModel
    old_class: type
    old_config: PreTrainedConfig
    new_config: PreTrainedConfig
    old_names: tuple[str, str]


@dataclass(frozen=True)
class NormReplacement:
    """One swapped norm: where, what stood there, what stands there, and which parameters and buffers went over.

    ``copies`` holds (old, new) of the copies that PEFT adapters train; in all of them the same went over.
    """

    path: str
    old: nn.Module = field(repr=False)
    new: nn.Module = field(repr=False)
    carried: tuple[str, ...]
    dropped: tuple[str, ...]
    created: tuple[str, ...]
    change: str
    copies: tuple[tuple[nn.Module, nn.Module], ...] = field(default=(), repr=False)

    @property
    def old_class(self) -> str:
        return type(self.old).__name__

    @property
    def new_class(self) -> str:
        return type(self.new).__name__


@dataclass(frozen=True)
class ReplacementReport:
    """What ``replace_norms`` did, in module order; ``str()`` of it is a table, and ``restore_norms`` undoes it."""

    norm_type: str
    replacements: tuple[NormReplacement, ...]
    identities: tuple[Identity, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.replacements)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("path", "old class", "new class", "carried", "dropped", "created")]
        for r in self.replacements:
            names = (", ".join(part) or "-" for part in (r.carried, r.dropped, r.created))
            rows.append((r.path, r.old_class, r.new_class, *names))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        changes = sorted({r.change for r in self.replacements})
        return "\n".join([*lines, f"{len(self)} norms are now {self.norm_type}", *changes])
