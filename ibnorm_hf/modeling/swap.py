# SPDX-License-Identifier: Apache-2.0
"""The swap itself: other norms in place of those of a model, which says so already or is told afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .create import SPECS, check_norm_flags, check_norm_type, create_norm, get_spec, scaled_by
from .private_accelerate import carry_hook
from .private_torch import hooks_of
from .recognize import area_of, eps_of, family_of, gain_offset_of, width_of
from .report import NormReplacement, ReplacementReport
from .scope import chosen_norms
from .sites import site_in
from .wrappers import unwrapped

_OPTIONS = ("norm_order", "norm_affine", "norm_bias", "norm_lambda_learned", "norm_depth_scale")  # of each norm

FoundNorm = tuple[str, list[nn.Module], str]  # its path, the modules there (see ``iter_norms``), its family


def swap_norms(model: nn.Module, flags: Mapping[str, Any]) -> ReplacementReport:
    """``replace_norms`` of a model whose class and config say so already; ``flags`` are all of its arguments."""
    return swap_at(model, _find_norms(model, flags["norm_scope"], flags["exclude"]), flags)


def swap_at(model: nn.Module, sites: Sequence[FoundNorm], flags: Mapping[str, Any]) -> ReplacementReport:
    """``swap_norms`` of the norms at some sites, whatever scope and exclusions the flags have."""
    norm_type = check_norm_type(flags["norm_type"], "batch")  # each site has its own area and is checked for it below
    lambdas = _one_each(flags["norm_lambda"], len(sites))
    swaps = []
    for (path, modules, family), lam in zip(sites, lambdas, strict=True):
        options = {name: flags[name] for name in _OPTIONS} | {"norm_lambda": lam}
        learned, scale = options["norm_lambda_learned"], options["norm_depth_scale"]
        check_norm_flags(norm_type, lam, options["norm_order"], area_of(modules[0]), learned, scale)
        options["site"] = site_in(model, path, width_of(modules[0]) or 0)
        near = _nearest_parameter(unwrapped(model), path)
        first, *rest = (_swap(path, old, family, norm_type, options, near) for old in modules)
        swaps.append(replace(first, copies=tuple((r.old, r.new) for r in rest)))
    put_in_place(model, {id(old): new for r in swaps for old, new in pairs(r)})
    return ReplacementReport(norm_type, tuple(swaps))


def _find_norms(model: nn.Module, norm_scope: str | Sequence[str], exclude: Sequence[str]) -> list[FoundNorm]:
    sites = []
    for path, modules in chosen_norms(model, norm_scope, exclude):
        module = modules[0]
        if not path:
            raise ValueError(f"{type(module).__name__} is itself a norm; use create_norm, or name the model around it.")
        family = family_of(module)
        if family is None:
            raise ValueError(
                f"'{path}' ({type(module).__name__}) looks like a norm but is neither LayerNorm nor RMSNorm over the "
                f"last dimension, nor BatchNorm2d; name it in exclude=['{path}'] to leave it as it is."
            )
        sites.append((path, modules, family))
    if not sites:
        where = "" if norm_scope == "all" and not exclude else f" at norm_scope={norm_scope}, exclude={list(exclude)}"
        raise ValueError(f"{type(model).__name__} has no norm to replace{where}.")
    return sites


def _nearest_parameter(model: nn.Module, path: str) -> torch.Tensor | None:
    """A parameter of the smallest module around ``path`` that has one: its dtype and device are the model's there."""
    while path:
        path = path.rpartition(".")[0]
        found = next(model.get_submodule(path).parameters(), None)
        if found is not None:
            return found
    return None


def converted(old: nn.Module, new: nn.Module, name: str) -> nn.Parameter:
    """A parameter of ``old`` as ``new`` writes it: the very same object where both write the gain alike."""
    parameter: nn.Parameter = getattr(old, name)
    offset = gain_offset_of(old) - gain_offset_of(new) if name == "weight" else 0.0
    if not offset:
        return parameter
    # In float32 and rounded once: bf16(w - 1) may be -1.
    gain = parameter.detach().float() + offset
    return nn.Parameter(gain.to(parameter.dtype), requires_grad=parameter.requires_grad)


def _one_each(norm_lambda: float | Sequence[float] | None, count: int) -> list[float | None]:
    if not isinstance(norm_lambda, Sequence):
        return [norm_lambda] * count
    if len(norm_lambda) != count:
        raise ValueError(f"norm_lambda lists {len(norm_lambda)} values, but the model has {count} norms.")
    return list(norm_lambda)


def _swap(
    path: str,
    old: nn.Module,
    family: str,
    norm_type: str,
    options: dict[str, Any],
    near: torch.Tensor | None,
) -> NormReplacement:
    first = next(old.parameters(), None)
    like = first if first is not None else near
    if options["norm_bias"] is None:
        options = {**options, "norm_bias": getattr(old, "bias", None) is not None}
    width, eps = width_of(old), eps_of(old)
    assert width is not None and eps is not None
    new = create_norm(
        norm_type,
        width,
        eps=eps,
        area=area_of(old),
        **options,
        device=None if like is None else like.device,
        dtype=None if like is None else like.dtype,
    )
    scale = getattr(old, "output_scale", 1.0)
    if scale != 1.0 and options["norm_depth_scale"] is None:
        new = scaled_by(new, scale)
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    carried = [name for name in after if name in before and before[name].shape == after[name].shape]
    for name in carried:
        setattr(new, name, converted(old, new, name))
    if area_of(old) == area_of(new) == "batch":
        _take_batch_options(old, new)
        carried += _carry_statistics(old, new)
    _carry_hooks(old, new)
    new.train(old.training)
    if first is not None:
        for name in after.keys() - set(carried):
            after[name].requires_grad_(first.requires_grad)  # what was frozen stays frozen
    existed = [*before, *(name for name, _ in old.named_buffers())]
    exist = [*after, *(name for name, _ in new.named_buffers())]
    created = tuple(name for name in exist if name not in carried)
    dropped = tuple(name for name in existed if name not in carried)
    change = _change(old, new, family, norm_type)
    if any(name.startswith("running_") for name in created):
        change += "; its running statistics start anew, so feed it training batches before evaluating"
    return NormReplacement(path, old, new, tuple(carried), dropped, created, change)


def _change(old: nn.Module, new: nn.Module, family: str, norm_type: str) -> str:
    spec = get_spec(norm_type)
    if family == spec.family and area_of(old) == area_of(new) and not (spec.options or spec.arguments):
        return f"{family} -> {norm_type}: same function"
    before = next(s for s in SPECS.values() if s.family == family).meaning_over(area_of(old))
    return f"{family} -> {norm_type}: before, it {before}; now it {spec.meaning_over(area_of(new))}"


def _take_batch_options(old: Any, new: Any) -> None:
    new.momentum = old.momentum
    if not old.track_running_stats:
        new.track_running_stats = False
        for name, _ in list(new.named_buffers()):
            setattr(new, name, None)


def _carry_statistics(old: nn.Module, new: nn.Module) -> list[str]:
    """Copy the buffers that mean the same; the count of batches only where no statistic begins anew."""
    before, after = dict(old.named_buffers()), dict(new.named_buffers())
    same = [name for name in after if name in before]
    if len(same) < len(after):
        same = [name for name in same if name != "num_batches_tracked"]
    for name in same:
        setattr(new, name, before[name].clone())
    return same


def _carry_hooks(old: nn.Module, new: nn.Module) -> None:
    for name, hooks in hooks_of(old).items():
        setattr(new, name, hooks)  # the very dicts: a hook's handle goes on working, on either module
    carry_hook(old, new)


def pairs(r: NormReplacement) -> list[tuple[nn.Module, nn.Module]]:
    return [(r.old, r.new), *r.copies]


def put_in_place(model: nn.Module, new_of: dict[int, nn.Module]) -> None:
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in new_of:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new_of[id(module)])
