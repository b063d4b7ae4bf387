# SPDX-License-Identifier: Apache-2.0
"""The one mechanism: swap the norms of a model in place, and undo it."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from .identity import return_identity, take_identity
from .recognize import iter_norms
from .report import NormReplacement, ReplacementReport
from .scope import check_scope
from .swap import converted, pairs, put_in_place, swap_norms


def replace_norms(
    model: nn.Module,
    norm_type: str,
    *,
    norm_lambda: float | Sequence[float] | None = None,
    norm_order: str = "compress-first",
    norm_affine: bool = True,
    norm_bias: bool | None = None,
    norm_lambda_learned: bool = False,
    norm_depth_scale: str | None = None,
    norm_scope: str | Sequence[str] = "all",
    exclude: Sequence[str] = (),
) -> ReplacementReport:
    """Swap the norms of ``model``, in place, for ``norm_type`` over the area of the norm that stands there.

    Weights that mean the same (``weight``, ``bias``) are carried over as the very same Parameter objects, so values,
    dtype, device, ``requires_grad``, ties and an optimizer's references survive; eps, hooks and train or eval mode too.
    Running statistics that mean the same are copied; those of IBNorm over a batch are of compressed activations, so
    they start anew, and a converted model needs training batches before it is evaluated: the report says so.
    A transformers model changes its name: one of a known family is then an ``IBNorm...`` class whose config says the
    flags, so that it is saved, copied and loaded with these norms; what is saved of any other is loaded by nothing.
    A module used at several paths stays one module. The model is untouched when an error is raised.
    Under PEFT, a norm and the copies that adapters train are swapped alike and count as one; a new parameter is trained
    exactly where the old norm was.

    Args:
        model: any module, usually a transformers model. Norms are recognised by what they compute, not by name:
            LayerNorm or RMSNorm (gain w, or 1 + w) over the last dimension, BatchNorm2d, and this package's own.
        norm_type: one of ``list_norms()``; in place of BatchNorm2d one of ``list_norms("batch")``.
        norm_lambda: one number, or one a norm in module order; None takes the variant's default.
        norm_order, norm_affine: as in ``create_norm``.
        norm_bias: None gives a bias exactly where the old norm had one.
        norm_lambda_learned, norm_depth_scale: as in ``create_norm``; a norm that was scaled stays so.
        norm_scope: ``all``, or one or several of ``final``, ``pre-attention`` and ``pre-mlp``.
        exclude: a config's ``norm_exclude``: paths, last parts of paths, or patterns, without the parts that PEFT adds.

    Raises:
        ValueError: an unknown norm_type, a flag outside its domain, no norm in scope, a module that looks like a norm
            and computes something else (exclude it to go on), or a list of lambdas of the wrong length.
    """
    report = swap_norms(
        model,
        flags := {
            "norm_type": norm_type,
            "norm_lambda": norm_lambda,
            "norm_order": norm_order,
            "norm_affine": norm_affine,
            "norm_bias": norm_bias,
            "norm_lambda_learned": norm_lambda_learned,
            "norm_depth_scale": norm_depth_scale,
            "norm_scope": check_scope(norm_scope),
            "exclude": exclude,
        },
    )
    try:
        named = take_identity(model, {**flags, "norm_type": report.norm_type}, [r.path for r in report.replacements])
    except Exception:
        restore_norms(model, report)
        raise
    return replace(report, identities=named)


def restore_norms(model: nn.Module, report: ReplacementReport) -> None:
    """Undo ``replace_norms``: the original modules return, with the values that stand in their place by now.

    A copy that a PEFT adapter made after the swap gets a copy of the original module, with its own parameters.

    Raises:
        ValueError: a norm of the report is no longer in the model.
    """
    norms = [modules for _, modules in iter_norms(model)]
    at = {id(module): modules for modules in norms for module in modules}
    old_of = {}
    for r in report.replacements:
        olds = {id(new): old for old, new in pairs(r)}
        modules = next((at[new] for new in olds if new in at), None)
        if modules is None:
            raise ValueError(f"'{r.path}' no longer holds the {r.new_class} of this report; nothing was restored.")
        for module in modules:
            old_of[id(module)] = old = olds.get(id(module)) or copy.deepcopy(r.old)
            _give_back(r, module, old)
    put_in_place(model, old_of)
    return_identity(report.identities)


def _give_back(r: NormReplacement, new: nn.Module, old: nn.Module) -> None:
    """Make ``old`` ready to stand again where ``new`` does, with the parameters, device, dtype and mode of today.

    Its running statistics stay its own: those that cannot return would not fit to those that could.
    """
    parameters = dict(new.named_parameters())
    for name in r.carried:
        if name in parameters:
            setattr(old, name, converted(new, old, name))
    like = next(new.parameters(), None)
    if like is not None:
        old.to(device=like.device, dtype=like.dtype)
    old.train(new.training)
