# SPDX-License-Identifier: Apache-2.0
"""The one mechanism: swap the norms of a model in place, say what was changed, and undo it."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .batch_norms import BatchAreaNorm, IBBatchNorm2d, NormalBatchNorm2d
from .channel_norms import ChannelFirst, DynamicTanh2d, IBNorm2d, LayerNorm2d, NormalNorm2d, RMSNorm2d
from .functional import check_lambda
from .norms import DynamicTanh, IBNorm, NormalNorm, RMSNorm, TokenNorm, check_norm_flags, check_norm_type, create_norm
from .wrappers import plain_path, unwrapped

# What a norm computes, by family; a swap between families changes the function, and the report says how.
_MEANING = {
    "layernorm": "centres and standardizes each token",
    "rmsnorm": "scales each token to unit RMS without centring",
    "ibnorm": "compresses toward the token's mean, then centres and standardizes",
    "normalnorm": "standardizes each token, then a power transform toward normality",
    "dyt": "squashes each element on its own, without statistics",
}
_MEANING_OVER_BATCH = {
    "batchnorm": "standardizes each channel over the batch",
    "ibnorm": "compresses toward the channel's mean over the batch, then centres and standardizes",
    "normalnorm": "standardizes each channel over the batch, then a power transform toward normality",
}
_CHANNEL_NORMS = (IBNorm2d, RMSNorm2d, NormalNorm2d, DynamicTanh2d, LayerNorm2d)  # before the classes they extend
_TOKEN_NORMS = (IBNorm, RMSNorm, NormalNorm, DynamicTanh, nn.LayerNorm)
_BATCH_NORMS = (IBBatchNorm2d, NormalBatchNorm2d, nn.BatchNorm2d)
_OUR_FORWARD: dict[type[nn.Module], Any] = {cls: cls.forward for cls in (*_CHANNEL_NORMS, *_TOKEN_NORMS, *_BATCH_NORMS)}
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


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


def replace_norms(
    model: nn.Module,
    norm_type: str,
    *,
    norm_lambda: float | Sequence[float] | None = None,
    norm_order: str = "compress-first",
    norm_affine: bool = True,
    norm_bias: bool | None = None,
    exclude: Sequence[str] = (),
) -> ReplacementReport:
    """Swap every norm of ``model``, in place, for ``norm_type`` over the area of the norm that stands there.

    Weights that mean the same (``weight``, ``bias``) are carried over as the very same Parameter objects, so values,
    dtype, device, ``requires_grad``, ties and an optimizer's references survive; eps, hooks and train or eval mode too.
    Running statistics that mean the same are copied; those of IBNorm over a batch are of compressed activations, so
    they start anew, and a converted model needs training batches before it is evaluated: the report says so.
    A module used at several paths stays one module. The model is untouched when an error is raised.
    Under PEFT, where an adapter trains a copy of a norm, original and copy are swapped alike and count as one norm,
    and a parameter that the new norm creates is trained exactly where the old norm was.

    Args:
        model: any module, usually a transformers model. Norms are recognised by what they compute, not by name:
            those that behave as LayerNorm or RMSNorm over the last dimension, BatchNorm2d, and this package's own.
        norm_type: one of ``list_norms()``; in place of BatchNorm2d one of ``list_norms("batch")``.
        norm_lambda: one number, or one a norm in module order; None takes the variant's default.
        norm_order, norm_affine: as in ``create_norm``.
        norm_bias: None gives a bias exactly where the old norm had one.
        exclude: paths, or the last parts of paths (``"q_norm"``), to leave alone; without the parts that PEFT adds.

    Raises:
        ValueError: an unknown norm_type, a flag outside its domain, no norm found, a module that looks like a norm and
            computes something else (exclude it to go on), or a list of lambdas of the wrong length.
    """
    norm_type = check_norm_type(norm_type, "batch")  # each site has its own area and is checked for it below
    sites = _find_norms(model, exclude)
    lambdas = _one_each(norm_lambda, len(sites))
    swaps = []
    for (path, modules, family), lam in zip(sites, lambdas, strict=True):
        check_norm_flags(norm_type, lam, norm_order, _area(modules[0]))
        first, *rest = (_swap(path, old, family, norm_type, lam, norm_order, norm_affine, norm_bias) for old in modules)
        swaps.append(replace(first, copies=tuple((r.old, r.new) for r in rest)))
    _put_in_place(model, {id(old): new for r in swaps for old, new in _pairs(r)})
    return ReplacementReport(norm_type, tuple(swaps))


def restore_norms(model: nn.Module, report: ReplacementReport) -> None:
    """Undo ``replace_norms``: the original modules return, with whatever values the carried parameters have by now.

    A copy that a PEFT adapter made after the swap gets a copy of the original module, with its own parameters.

    Raises:
        ValueError: a norm of the report is no longer in the model.
    """
    norms = [modules for _, modules in iter_norms(model)]
    at = {id(module): modules for modules in norms for module in modules}
    old_of = {}
    for r in report.replacements:
        olds = {id(new): old for old, new in _pairs(r)}
        modules = next((at[new] for new in olds if new in at), None)
        if modules is None:
            raise ValueError(f"'{r.path}' no longer holds the {r.new_class} of this report; nothing was restored.")
        for module in modules:
            old_of[id(module)] = old = olds.get(id(module)) or _copy_with_parameters(r, module)
            _move_tensors(old, like=next(module.parameters(), None))
            old.train(module.training)
    _put_in_place(model, old_of)


def iter_norms(model: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Every norm of ``model`` in module order: its path, and the modules that stand there.

    There is one module a norm, except under PEFT, where the frozen original comes first and is followed by the copy
    of each adapter that trains the norm; the path is then that of the model without PEFT.
    """
    base = unwrapped(model)
    norms: dict[str, list[nn.Module]] = {}
    for path, module in base.named_modules():
        if _looks_like_norm(module):
            norms.setdefault(plain_path(base, path), []).append(module)
    yield from norms.items()


def set_norm_lambda(model: nn.Module, norm_lambda: float | Sequence[float]) -> None:
    """Give the IBNorms of ``model`` another lambda, in the modules and, where it has the field, in ``model.config``.

    Args:
        model: a model with IBNorms, or one around it of PEFT, whose copies of a norm are set alike.
        norm_lambda: one number, or one an IBNorm in module order.

    Raises:
        ValueError: a number outside its domain, a list of the wrong length, or no IBNorm; nothing is changed then.
    """
    norms = [modules for _, modules in iter_norms(model) if isinstance(modules[0], IBNorm | IBBatchNorm2d)]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no IBNorm whose lambda could be set.")
    each = norm_lambda if isinstance(norm_lambda, Sequence) else [norm_lambda] * len(norms)
    lambdas = [check_lambda(value) for value in each]
    if len(lambdas) != len(norms):
        raise ValueError(f"norm_lambda lists {len(lambdas)} values, but the model has {len(norms)} IBNorms.")
    for modules, value in zip(norms, lambdas, strict=True):
        for module in modules:
            module.norm_lambda = value  # type: ignore[assignment]
    config: Any = getattr(unwrapped(model), "config", None)
    if hasattr(config, "norm_lambda"):
        config.norm_lambda = lambdas[0] if len(set(lambdas)) == 1 else lambdas


def assert_norms(model: nn.Module, norm_type: str | None = None) -> None:
    """Raise unless every norm of ``model`` still runs the forward it was built with.

    Patches that rebind a norm's forward (``use_liger_kernel``, a kernel hub) turn IBNorm into RMSNorm in silence;
    this names the module. ``norm_type``, where given or found in ``model.config``, must match as well.

    Raises:
        RuntimeError: a patched forward, a norm of another type, or no norm at all.
    """
    norm_type = norm_type or getattr(getattr(model, "config", None), "norm_type", None)
    expected = None if norm_type is None else check_norm_type(norm_type, "batch")
    norms = [(path, module) for path, modules in iter_norms(model) for module in modules]
    for path, module in norms:
        home = next((cls for cls in _OUR_FORWARD if isinstance(module, cls)), None)
        rebound = "forward" in vars(module) and not hasattr(module, "_hf_hook")
        if rebound or (home is not None and type(module).forward is not _OUR_FORWARD[home]):
            raise RuntimeError(
                f"The forward of '{path}' ({type(module).__name__}) was replaced by other code; "
                "load the model again without kernel patches such as use_liger_kernel."
            )
        if expected is not None and norm_name(module) != expected:
            raise RuntimeError(f"'{path}' is {norm_name(module) or type(module).__name__}, expected {expected}.")
    if not norms:
        raise RuntimeError(f"{type(model).__name__} has no norm to check.")


def norm_name(module: nn.Module) -> str | None:
    """The ``norm_type`` that a module of this package (or torch's own) implements; None for any other module."""
    if isinstance(module, IBNorm | IBBatchNorm2d):
        return module.norm_type
    if isinstance(module, NormalNorm | NormalBatchNorm2d):
        return "normalnorm" if module.noise else "normalnorm-noiseless"
    names = {RMSNorm: "rmsnorm", DynamicTanh: "dyt", nn.LayerNorm: "layernorm", nn.BatchNorm2d: "batchnorm"}
    return next((name for cls, name in names.items() if isinstance(module, cls)), None)


def _looks_like_norm(module: nn.Module) -> bool:
    by_name = "norm" in type(module).__name__.lower() or isinstance(
        module, (TokenNorm, BatchAreaNorm, nn.LayerNorm, nn.RMSNorm)
    )
    return by_name and not any(True for _ in module.children())


def _find_norms(model: nn.Module, exclude: Sequence[str]) -> list[tuple[str, list[nn.Module], str]]:
    kinds: dict[Any, str | None] = {}
    sites = []
    base = unwrapped(model)
    paths = [plain_path(base, path) for path, _ in base.named_modules() if path]
    for e in exclude:
        if not any(path == e or path.endswith(f".{e}") for path in paths):
            raise ValueError(f"exclude names '{e}', but {type(model).__name__} has no such module.")
    for path, modules in iter_norms(model):
        module = modules[0]
        if any(path == e or path.endswith(f".{e}") for e in exclude):
            continue
        if not path:
            raise ValueError(f"{type(module).__name__} is itself a norm; use create_norm, or name the model around it.")
        kind = (type(module), _width(module), tuple(name for name, _ in module.named_parameters()))
        if kind not in kinds:
            kinds[kind] = _family(module)
        family = kinds[kind]
        if family is None:
            raise ValueError(
                f"'{path}' ({type(module).__name__}) looks like a norm but is neither LayerNorm nor RMSNorm over the "
                f"last dimension, nor BatchNorm2d; name it in exclude=['{path}'] to leave it as it is."
            )
        sites.append((path, modules, family))
    if not sites:
        raise ValueError(f"{type(model).__name__} has no norm to replace.")
    return sites


def _family(module: nn.Module) -> str | None:
    """Recognise a norm by what its class computes on a small random input with random weights."""
    if isinstance(module, (IBNorm, IBBatchNorm2d)):
        return "ibnorm"
    if isinstance(module, (NormalNorm, NormalBatchNorm2d)):
        return "normalnorm"
    for cls, name in {DynamicTanh: "dyt", RMSNorm: "rmsnorm"}.items():
        if isinstance(module, cls):
            return name
    if type(module) is nn.BatchNorm2d:
        return "batchnorm"
    width, eps = _width(module), _eps(module)
    if width is None or eps is None or {n for n, _ in module.named_parameters()} - {"weight", "bias"}:
        return None
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"), torch.no_grad():
        x = torch.randn(3, width, generator=generator, dtype=torch.float32) + 0.5
        trial = copy.copy(module)  # shares nothing that is written to, and carries no hook into the call
        random = {name: torch.randn(width, generator=generator, dtype=x.dtype) for name, _ in module.named_parameters()}
        trial._parameters = {name: random.get(name) for name in module._parameters}  # type: ignore[misc]
        try:
            y = type(module).forward(trial, x)
        except (RuntimeError, TypeError, ValueError):
            return None
        weight, bias = random.get("weight", 1), random.get("bias", 0)
        centred = nn.functional.layer_norm(x, (width,), eps=eps) * weight + bias
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight + bias
    for name, expected in (("layernorm", centred), ("rmsnorm", scaled)):
        if y.shape == expected.shape and torch.allclose(y, expected, rtol=1e-4, atol=1e-4):
            return name
    return None


def _area(module: nn.Module) -> str:
    if isinstance(module, (BatchAreaNorm, nn.BatchNorm2d)):
        return "batch"
    return "channel" if isinstance(module, ChannelFirst) else "token"


def _width(module: nn.Module) -> int | None:
    if _area(module) == "batch":
        return int(module.num_features)  # type: ignore[arg-type]
    shape = getattr(module, "normalized_shape", None)
    if shape is None:
        weight = getattr(module, "weight", None)
        shape = (getattr(module, "width", None),) if weight is None else weight.shape
    return shape[0] if len(shape) == 1 else None


def _eps(module: nn.Module) -> float | None:
    for name in ("eps", "variance_epsilon", "epsilon"):
        if hasattr(module, name):
            eps = getattr(module, name)
            return torch.finfo(torch.float32).eps if eps is None else float(eps)
    return None


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
    norm_lambda: float | None,
    norm_order: str,
    norm_affine: bool,
    norm_bias: bool | None,
) -> NormReplacement:
    like = next(old.parameters(), None)
    width, eps = _width(old), _eps(old)
    assert width is not None and eps is not None
    new = create_norm(
        norm_type,
        width,
        eps=eps,
        norm_lambda=norm_lambda,
        norm_order=norm_order,
        norm_affine=norm_affine,
        norm_bias=getattr(old, "bias", None) is not None if norm_bias is None else norm_bias,
        area=_area(old),
        device=None if like is None else like.device,
        dtype=None if like is None else like.dtype,
    )
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    carried = [name for name in after if name in before and before[name].shape == after[name].shape]
    for name in carried:
        setattr(new, name, before[name])
    if _area(old) == _area(new) == "batch":
        _take_batch_options(old, new)
        carried += _carry_statistics(old, new)
    _carry_hooks(old, new)
    new.train(old.training)
    if like is not None:
        for name in after.keys() - set(carried):
            after[name].requires_grad_(like.requires_grad)  # what was frozen stays frozen
    existed = [*before, *(name for name, _ in old.named_buffers())]
    exist = [*after, *(name for name, _ in new.named_buffers())]
    created = tuple(name for name in exist if name not in carried)
    dropped = tuple(name for name in existed if name not in carried)
    change = _change(old, new, family, norm_type)
    if any(name.startswith("running_") for name in created):
        change += "; its running statistics start anew, so feed it training batches before evaluating"
    return NormReplacement(path, old, new, tuple(carried), dropped, created, change)


def _change(old: nn.Module, new: nn.Module, family: str, norm_type: str) -> str:
    new_family = "ibnorm" if isinstance(new, IBNorm | IBBatchNorm2d) else norm_type.removesuffix("-noiseless")
    if family == new_family and _area(old) == _area(new) and new_family not in ("ibnorm", "normalnorm"):
        return f"{family} -> {norm_type}: same function"
    before, now = _meaning(family, _area(old)), _meaning(new_family, _area(new))
    return f"{family} -> {norm_type}: before, it {before}; now it {now}"


def _meaning(family: str, area: str) -> str:
    return (
        _MEANING_OVER_BATCH[family]
        if area == "batch"
        else _MEANING[family].replace("token", "pixel" if area == "channel" else "token")
    )


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
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))  # the very dicts: a hook's handle goes on working, on either module
    if hasattr(old, "_hf_hook"):
        try:  # an import that is not tried would be demanded of whoever loads this file with a checkpoint
            from accelerate.hooks import add_hook_to_module
        except ImportError as error:
            raise RuntimeError("the model carries hooks of accelerate, which is not installed") from error
        add_hook_to_module(new, old._hf_hook)


def _move_tensors(module: nn.Module, like: torch.Tensor | None) -> None:
    if like is not None:
        module.to(device=like.device, dtype=like.dtype)


def _pairs(r: NormReplacement) -> list[tuple[nn.Module, nn.Module]]:
    return [(r.old, r.new), *r.copies]


def _copy_with_parameters(r: NormReplacement, module: nn.Module) -> nn.Module:
    old = copy.deepcopy(r.old)
    for name in r.carried:
        setattr(old, name, getattr(module, name))
    return old


def _put_in_place(model: nn.Module, new_of: dict[int, nn.Module]) -> None:
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in new_of:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new_of[id(module)])
