# SPDX-License-Identifier: Apache-2.0
"""One run, measured at every norm: trained, before its first step, and with each norm of the study in its place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import UserError
from ..common.paths import digest, write_json
from ..common.run import fingerprint, model_folder
from ..common.shape import share_beyond, spread
from ..common.strict_json import read_object
from ..modeling.create import create_norm
from ..modeling.recognize import area_of, eps_of, iter_norms, width_of
from ..modeling.sites import site_in
from .capture import AFTER, BEFORE, Captured, capture, norm_sites
from .measure import Options, frequent, measure, plane_of
from .runs import Opened, Source, held_out, is_ibnorm, trained_model

_FORM = 2  # of a record; another one is made anew


def record(
    opened: Opened,
    arms: Mapping[str, Mapping[str, Any]],
    source: Source,
    options: Options,
    *,
    placebo: bool,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Measure a run at each of its norms, or read what was measured before.

    Args:
        arms: of the study, name to norm flags: each is put in the place of each norm, untrained and without a gain.
        placebo: measure those, and the run before its first step.
        keep: file that the record is kept in; a record of the same weights, options and arms is read from it.

    Returns:
        the run; ``sites``: of each norm its place, ``trained``, ``initial`` and ``placebo`` by arm; and ``seconds``
        that measuring took: ``wall``, and ``cpu`` of this process over all its threads.

    Raises:
        UserError: the run's model or held-out data are not there, or not finite.
    """
    mark = [_FORM, fingerprint([model_folder(opened.run.folder)]), options.as_dict(), placebo]
    key = digest([*mark, {name: dict(flags) for name, flags in arms.items()} if placebo else None])
    if keep is not None and keep.is_file():
        content = read_object(keep)
        if content.get("key") == key:
            return content
    wall, cpu = time.monotonic(), time.process_time()
    try:
        made = {"key": key, **_measured(opened, arms, source, options, placebo)}
    except ValueError as error:
        raise UserError(f"run {opened.run.folder} cannot be analyzed: {error}", exit_code=1) from None
    made["seconds"] = {"wall": round(time.monotonic() - wall, 2), "cpu": round(time.process_time() - cpu, 2)}
    if keep is not None:
        write_json(keep, made)
    return made


def _measured(
    opened: Opened, arms: Mapping[str, Mapping[str, Any]], source: Source, options: Options, placebo: bool
) -> dict[str, Any]:
    model = trained_model(opened)
    trained = _captured(model, opened, source, options)
    labels = frequent(trained.labels, options.classes)
    initial = _captured(source.initial_model(opened.run.folder), opened, source, options) if placebo else None
    shares = [line["share_over_lambda"] for line in opened.run.metrics if "share_over_lambda" in line]
    sites = []
    for number, (path, modules) in enumerate(iter_norms(model)):
        before, after = trained.sites[path + BEFORE], trained.sites[path + AFTER]
        place, plane = site_in(model, path), plane_of(before, labels, options)
        module: Any = modules[-1]  # under PEFT the copy that is trained
        lam = float(module.norm_lambda) if is_ibnorm(str(getattr(module, "norm_type", ""))) else None
        entry: dict[str, Any] = {
            "site": path,
            "number": number + 1,
            "layer": place.layer,
            "kind": place.kind,
            "lambda": lam,
            "share_beyond": None if lam is None else share_beyond(before, lam),
            "share_beyond_logged": shares[-1].get(path) if shares else None,
            "input_spread": spread(before),
            "trained": measure(after, before, labels, options, plane=plane),
        }
        if initial is not None:
            entry["initial"] = measure(
                initial.sites[path + AFTER], initial.sites[path + BEFORE], labels, options, intervals=False
            )
            entry["placebo"] = {
                name: measure(
                    swapped(before, module, flags, number), before, labels, options, intervals=False, plane=plane
                )
                for name, flags in arms.items()
            }
        sites.append(entry)
    return {
        "run": opened.run.name,
        "arm": opened.arm,
        "norm_type": opened.flags["norm_type"],
        "seed": opened.seed,
        "images": opened.is_of_images,
        "options": options.as_dict(),
        "samples": len(labels),
        "seen": trained.seen,
        "classes": int(labels.max()) + 1,
        "sites": sites,
    }


def _captured(model: Any, opened: Opened, source: Source, options: Options) -> Captured:
    batches = held_out(opened, source, samples=options.samples, seed=options.seed)
    return capture(model, batches, sites=norm_sites(model), samples=options.samples, seed=options.seed)


@torch.no_grad()
def swapped(inputs: Tensor, host: nn.Module, flags: Mapping[str, Any], number: int) -> Tensor:
    """What another norm, untrained and without a gain, gives for the captured input (samples, width) of a norm.

    Args:
        host: the norm whose input it is, and whose eps is kept; over a batch, the samples are the batch.
        flags: norm type, lambda and order; of a list of lambdas that of this number.
    """
    width, lam = width_of(host) or inputs.shape[1], flags.get("norm_lambda")
    lam = lam[number] if isinstance(lam, list) else lam
    area, eps = ("token" if area_of(host) == "token" else "batch"), eps_of(host)
    norm = create_norm(
        str(flags["norm_type"]),
        width,
        eps=1e-5 if eps is None else eps,
        norm_lambda=lam,
        norm_order=str(flags.get("norm_order") or "compress-first"),
        norm_affine=False,
        area=area,
        dtype=torch.float64,
    )
    rows = inputs.double().reshape(-1, width)
    if area == "token":
        return norm.eval()(rows).reshape(inputs.shape)
    pixels = rows[:, :, None, None]
    for module in norm.modules():
        if hasattr(module, "momentum"):
            setattr(module, "momentum", 1.0)  # noqa: B010 - the running statistics become those of the samples
    norm.train()(pixels)
    return norm.eval()(pixels)[:, :, 0, 0]
