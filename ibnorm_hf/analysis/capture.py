# SPDX-License-Identifier: Apache-2.0
"""What a model holds at its norms and in its residual stream, on held-out data: a fixed sample, by forward hooks.

Which positions are kept depends on the seed and on the data alone, so that two models of one data set are sampled at
the very same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.packed import IGNORED
from ..modeling.recognize import iter_norms, width_of
from ..modeling.wrappers import unwrapped

BEFORE, AFTER = ":in", ":out"  # a site is a module's path with one of these


@dataclass(frozen=True)
class Captured:
    """Activations at the same sampled positions of every site, on the CPU.

    Attributes:
        sites: site to (samples, width), float32. ``PATH:in`` is what the module there read, ``PATH:out`` what it gave.
        labels: (samples,) int64: the next token, or the class of the image.
        places: (samples,) int64: the number of each sample among all that could have been taken, ascending.
        seen: how many could have been taken.
    """

    sites: dict[str, Tensor]
    labels: Tensor
    places: Tensor
    seen: int


@dataclass(frozen=True)
class Batch:
    """What a model reads at once, and which of its positions may be sampled.

    Args:
        inputs: keywords of the model's forward.
        labels: (rows, positions) int64 of a text, IGNORED where nothing may be sampled, or (rows,) classes of images,
            of each of which one position is drawn.
    """

    inputs: dict[str, Tensor]
    labels: Tensor


def text_batch(ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Batch:
    """A batch of (rows, length) token ids. The label of a position is its next token.

    Left out are padding (mask 0), prompts (tokens whose own label is IGNORED), what precedes either, and last tokens.
    """
    counted = labels.ne(IGNORED) if attention_mask is None else labels.ne(IGNORED) & attention_mask.bool()
    wanted = counted[:, :-1] & counted[:, 1:]
    following = torch.full_like(labels, IGNORED)
    following[:, :-1] = torch.where(wanted, labels[:, 1:], IGNORED)
    inputs = {"input_ids": ids} if attention_mask is None else {"input_ids": ids, "attention_mask": attention_mask}
    return Batch(inputs, following)


def image_batch(pixel_values: Tensor, classes: Tensor) -> Batch:
    """A batch of (rows, channels, height, width) as the model reads it, and the (rows,) classes."""
    return Batch({"pixel_values": pixel_values}, classes)


def norm_sites(model: nn.Module) -> list[str]:
    """Before and after each norm of a model, in module order."""
    return [path + end for path, _ in iter_norms(model) for end in (BEFORE, AFTER)]


def residual_sites(model: nn.Module) -> list[str]:
    """After each layer of a model: the items of its longest list of modules."""
    lists = [(name, m) for name, m in unwrapped(model).named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        return []
    longest = max(len(layers) for _, layers in lists)
    return [f"{name}.{i}{AFTER}" for name, layers in lists if len(layers) == longest for i in range(longest)][:longest]


def capture_bytes(model: nn.Module, sites: Sequence[str], samples: int) -> int:
    """Bytes that the samples take, for sites whose width the model or its config tells; the bound of ``capture``."""
    base = unwrapped(model)
    norms = {path: width_of(modules[0]) for path, modules in iter_norms(model)}
    hidden = getattr(base.config, "hidden_size", None)
    total = 0
    for site in sites:
        width = norms.get(site.rpartition(":")[0]) or hidden
        if width is None:
            raise ValueError(f"the width of {site} is not known before it was captured.")
        total += 4 * samples * width
    return total


def capture(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    sites: Sequence[str] | None = None,
    samples: int = 4096,
    seed: int = 0,
) -> Captured:
    """Run a model over batches and keep a uniform sample of positions at each site (Vitter 1985, algorithm R).

    The model is in eval mode meanwhile, and every flag, also after an error, is what it was. No more than ``samples``
    rows a site are held, whatever the length of the data, beside what the model itself needs for one batch.

    Args:
        model: any of transformers': ours, vanilla, with replaced norms, or with a PEFT adapter. Text sites are
            (rows, positions, width); image sites also (rows, channels, height, width).
        batches: from ``text_batch`` or ``image_batch``, on any device.
        sites: None takes ``norm_sites`` and ``residual_sites``.
        samples: at most; all that there are where there are fewer.
        seed: of the sample.

    Raises:
        ValueError: a site is not there, was never run or has another shape, or there is nothing to sample.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    wanted = list(dict.fromkeys([*norm_sites(model), *residual_sites(model)] if sites is None else sites))
    device = next(model.parameters()).device
    reservoir = _Reservoir(samples, seed)
    with _hooked(model, wanted, reservoir), torch.no_grad():
        options = {"use_cache": False} if hasattr(unwrapped(model).config, "use_cache") else {}
        for batch in batches:
            if not reservoir.take(batch.labels):
                continue  # none of its positions is kept
            inputs = {name: value.to(device) for name, value in batch.inputs.items()}
            model(**inputs, **(options if "input_ids" in inputs else {}))
    return reservoir.result(wanted)


class _Reservoir:
    """Slots for ``samples`` positions; each batch first says which of its positions go to which slots."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seen = samples, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.labels = torch.full((samples,), IGNORED)
        self.places = torch.full((samples,), -1)
        self.rows = self.slots = torch.empty(0, dtype=torch.int64)
        self.shape: tuple[int, ...] = ()
        self.where = torch.empty(0)  # of an image: which of its positions, as a share
        self.kept: dict[str, Tensor] = {}

    def take(self, labels: Tensor) -> bool:
        """Choose among the positions of a batch with these labels; False if none is kept."""
        labels = labels.cpu()
        self.shape = tuple(labels.shape)
        flat = labels.reshape(-1)
        candidates = flat.ne(IGNORED).nonzero().squeeze(1)
        number = self.seen + torch.arange(len(candidates))
        # Number i, counted from 0, goes to a slot drawn from i + 1, if there is such a slot; the first fill them all.
        drawn = torch.rand(len(candidates), generator=self.generator, dtype=torch.float64) * (number + 1)
        slots = torch.where(number < self.samples, number, drawn.long())
        if len(self.shape) == 1:
            self.where = torch.rand(len(candidates), generator=self.generator, dtype=torch.float64)
        self.seen += len(candidates)
        last = {int(slots[i]): i for i in range(len(slots)) if slots[i] < self.samples}  # of two for a slot, the later
        chosen = torch.tensor(list(last.values()), dtype=torch.int64)
        self.slots, self.rows = torch.tensor(list(last), dtype=torch.int64), candidates[chosen]
        if len(self.shape) == 1:
            self.where = self.where[chosen]
        self.labels[self.slots], self.places[self.slots] = flat[self.rows], number[chosen]
        return bool(len(chosen))

    def put(self, site: str, values: Any) -> None:
        """Keep what was chosen of one site's activations."""
        values = values[0] if isinstance(values, tuple) else values
        if not isinstance(values, Tensor) or values.ndim < 2 or values.shape[0] != self.shape[0]:
            raise ValueError(f"{site} gives no tensor of {self.shape[0]} rows; name other sites.")
        picked = self._text(site, values) if len(self.shape) == 2 else self._image(values)
        picked = picked.detach().to("cpu", torch.float32)
        if site not in self.kept:
            self.kept[site] = torch.zeros(self.samples, picked.shape[1])
        self.kept[site][self.slots] = picked

    def _text(self, site: str, values: Tensor) -> Tensor:
        if values.ndim < 3 or values.shape[1] != self.shape[1]:
            raise ValueError(f"{site} is {tuple(values.shape)}, not (rows, positions, width); name other sites.")
        # Norms of queries and keys are (rows, positions, heads, width of a head).
        return values.reshape(self.shape[0] * self.shape[1], -1)[self.rows.to(values.device)]

    def _image(self, values: Tensor) -> Tensor:
        if values.ndim == 4:
            values = values.flatten(2).transpose(1, 2)
        if values.ndim == 2:
            return values[self.rows.to(values.device)]
        place = (self.where * values.shape[1]).long()
        return values[self.rows.to(values.device), place.to(values.device)]

    def result(self, wanted: Sequence[str]) -> Captured:
        if not self.seen:
            raise ValueError("the batches hold no position to sample: all are padding, prompts or last tokens.")
        if missing := [site for site in wanted if site not in self.kept]:
            raise ValueError(f"{missing[0]} was never run; name other sites.")
        order = self.places[: min(self.seen, self.samples)].argsort()
        sites = {site: self.kept.pop(site)[order] for site in wanted}
        return Captured(sites, self.labels[order], self.places[order], self.seen)


@contextmanager
def _hooked(model: nn.Module, sites: Sequence[str], reservoir: _Reservoir) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    handles: list[Any] = []
    try:
        for path in dict.fromkeys(site.rpartition(":")[0] for site in sites):
            ends = [end for end in (BEFORE, AFTER) if path + end in sites]
            for module in _modules(model, path, f"{path}{ends[0] if ends else ''}"):
                handles.append(module.register_forward_hook(_hook(path, ends, reservoir), with_kwargs=True))
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in flags.items():
            module.training = training


def _hook(path: str, ends: Sequence[str], reservoir: _Reservoir) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        if BEFORE in ends:
            reservoir.put(path + BEFORE, inputs[0] if inputs else next(iter(keywords.values())))
        if AFTER in ends:
            reservoir.put(path + AFTER, output)

    return hook


def _modules(model: nn.Module, path: str, site: str) -> list[nn.Module]:
    """What stands at a path: a norm, with PEFT's copies of it, or one module."""
    norms = dict(iter_norms(model))
    if path in norms:
        return norms[path]
    try:
        return [unwrapped(model).get_submodule(path)]
    except AttributeError:
        raise ValueError(f"the model has no {site}; see norm_sites and residual_sites.") from None
