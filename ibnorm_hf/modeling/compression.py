# SPDX-License-Identifier: Apache-2.0
"""The bounded compressions of IBNorm, one registry entry each: g, its derivative and the default lambda.

IBNorm compresses the deviation d of an activation from its mean to ``lambda * g(d / lambda)``.
That g is bounded in growth, odd and contracting toward the mean is sourced (arXiv:2510.25262); the exact
formulas are reconstructed, because the authors released no code. Each entry says how sure it is.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .specs import SPECS


@dataclass(frozen=True)
class Compression:
    """One compression: ``g(u)`` and ``dg(u, s)``, the derivative of g at u given ``s = g(u)``, both elementwise."""

    name: str
    g: Callable[[Tensor], Tensor]
    dg: Callable[[Tensor, Tensor], Tensor]
    default_lambda: float
    formula: str = "registered by its user"
    confidence: str = "your own"


def _log(u: Tensor) -> Tensor:
    # sign(u) ln(1 + |u|), written so that its own derivative is right at 0 and that ONNX has every operation.
    a = u.abs().clamp(min=torch.finfo(u.dtype).tiny)
    return u * (torch.log1p(a) / a)


def _dlog(u: Tensor, s: Tensor) -> Tensor:
    return 1 / (1 + u.abs())


def _tanh(u: Tensor) -> Tensor:
    return torch.tanh(u)


def _dtanh(u: Tensor, s: Tensor) -> Tensor:
    return 1 - s * s


def _softsign(u: Tensor) -> Tensor:
    return u / (1 + u.abs())


def _dsoftsign(u: Tensor, s: Tensor) -> Tensor:
    return (1 + u.abs()).pow(-2)


def _sqrt(u: Tensor) -> Tensor:
    # 2 sign(u) (sqrt(1 + |u|) - 1), written without the cancellation near zero.
    return 2 * u / (1 + torch.sqrt(1 + u.abs()))


def _dsqrt(u: Tensor, s: Tensor) -> Tensor:
    return torch.rsqrt(1 + u.abs())


def _clip(u: Tensor) -> Tensor:
    return u.clamp(-1, 1)


def _dclip(u: Tensor, s: Tensor) -> Tensor:
    return 0.5 * (1 + torch.sign(1 - u.abs()))  # 1, then 0; the mean of both where they meet


_REGISTRY: dict[str, Compression] = {
    entry.name: entry
    for entry in (
        # Default lambdas are sourced (figure captions), formulas reconstructed; each says how sure it is.
        Compression("ibnorm-l", _log, _dlog, 4.0, "sign(u) ln(1 + |u|)", "high confidence"),
        Compression("ibnorm-t", _tanh, _dtanh, 4.0, "tanh(u)", "high confidence"),
        Compression(
            "ibnorm-s",
            _softsign,
            _dsoftsign,
            3.0,
            "u / (1 + |u|)",
            "low confidence: the paper says only that it saturates",
        ),
        Compression(
            "ibnorm-sqrt",
            _sqrt,
            _dsqrt,
            3.0,
            "2 sign(u) (sqrt(1 + |u|) - 1)",
            "low confidence: another reading of IBNorm-S",
        ),
        Compression(
            "ibnorm-clip", _clip, _dclip, 4.0, "max(-1, min(1, u))", "ours: bounded as hard as can be, no slope outside"
        ),
    )
}


def canonical_name(name: str) -> str:
    """``IBNorm_L`` and ``ibnorm-l`` are one name: lower case, with hyphens."""
    return str(name).strip().lower().replace("_", "-")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a misspelt name: it lists what is known and the nearest match."""
    known = sorted(known)
    nearest = difflib.get_close_matches(canonical_name(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return ValueError(f"Unknown {kind} '{name}'; known: {', '.join(known)}.{hint}")


def list_compressions() -> list[str]:
    """Names of all registered compressions, the user's own included."""
    return sorted(_REGISTRY)


def get_compression(name: str) -> Compression:
    """Look a compression up by its case-insensitive name. Raises ValueError for an unknown one."""
    try:
        return _REGISTRY[canonical_name(name)]
    except KeyError:
        raise unknown_name("compression", name, _REGISTRY) from None


def register_compression(
    name: str,
    g: Callable[[Tensor], Tensor],
    dg: Callable[[Tensor, Tensor], Tensor],
    *,
    default_lambda: float = 4.0,
) -> None:
    """Add a compression of your own; afterwards ``norm_type=name`` works everywhere.

    Args:
        name: a new name, case-insensitive.
        g: elementwise function of a float tensor; odd, monotone and non-expansive (``|g(u)| <= |u|``).
        dg: ``dg(u, s)``, the derivative of g at u, where ``s = g(u)`` is at hand for free.
        default_lambda: used where a model names none; positive.

    Raises:
        ValueError: the name is taken, or a property does not hold on a float64 grid over [-1e4, 1e4].
    """
    name = canonical_name(name)
    if name in _REGISTRY or name in SPECS:
        raise ValueError(f"A norm named '{name}' exists already; choose another name.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ValueError(f"'{name}' is no name; use letters, digits and hyphens.")
    if not 0 < default_lambda < float("inf"):
        raise ValueError(f"default_lambda must be a finite number above 0, got {default_lambda!r}.")
    with torch.device("cpu"):  # whatever the default is
        _check_compression(name, g, dg)
    _REGISTRY[name] = Compression(name, g, dg, float(default_lambda))


def _check_compression(
    name: str, g: Callable[[Tensor], Tensor], dg: Callable[[Tensor, Tensor], Tensor], tolerance: float = 1e-5
) -> None:
    positive = torch.logspace(-6, 4, 2001, dtype=torch.float64)
    u = torch.cat([-positive.flip(0), positive.new_zeros(1), positive])
    s = g(u)
    step = 1e-6 * (1 + u.abs())
    slope = (g(u + step) - g(u - step)) / (2 * step)
    properties = {
        "finite": torch.isfinite(s).all(),
        "odd": torch.allclose(g(-u), -s, rtol=tolerance, atol=0),
        "monotone": (s.diff() >= 0).all(),
        "non-expansive": (s.abs() <= u.abs() * (1 + tolerance)).all(),
        "dg the derivative of g": torch.allclose(dg(u, s), slope, rtol=1e-4, atol=tolerance),
    }
    failed = [text for text, holds in properties.items() if not holds]
    if failed:
        raise ValueError(f"The compression '{name}' cannot be registered; not so: {', '.join(failed)}.")
