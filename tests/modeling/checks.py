# SPDX-License-Identifier: Apache-2.0
"""How a path of ``ib_norm`` is held against the float64 reference: outputs and gradients, with a random cotangent."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ibnorm_hf.modeling.compression import list_compressions
from ibnorm_hf.modeling.functional import ib_norm_reference

VARIANTS = tuple(list_compressions())
ORDERS = ("compress-first", "standardize-first")
WIDTHS = (1, 3, 7, 192, 760, 1023, 2048)
DEFAULTS = (torch.float64, torch.bfloat16, torch.float16, "meta")  # of a process; float32 on the CPU is tested anyhow
LAYOUTS = ("contiguous", "sliced", "transposed")

# Rounding of the result to its dtype, and of float32 arithmetic inside, as multiples of the dtype's epsilon.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def make_input(rows: int, width: int, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0) -> Tensor:
    """(rows, width) of skewed values, std about 3, in the given memory layout."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    x = (3 * x + x * x).to(dtype)
    if layout == "sliced":
        return torch.stack([x, x + 1], -1).flatten(-2)[:, ::2]
    return x.t().contiguous().t() if layout == "transposed" else x.contiguous()


@contextlib.contextmanager
def process_default(default: torch.dtype | str) -> Iterator[None]:
    """What a new tensor without a stated dtype or device becomes: here, ``default``, a dtype or a device's name."""
    if isinstance(default, str):
        with torch.device(default):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def gradients(
    function: Callable[..., Tensor], *inputs: Tensor, cotangent: Tensor, default: torch.dtype | str = torch.float32
) -> list[Tensor]:
    """[output, gradient of each input] for the given cotangent, on detached copies with the same strides.

    Forward and backward run under the given default dtype or device.
    """
    leaves = [t.detach().requires_grad_() for t in inputs]
    with process_default(default):
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))]


def assert_matches_reference(
    function: Callable[..., Tensor],
    x: Tensor,
    tolerance: float | None = None,
    default: torch.dtype | str = torch.float32,
    **options: Any,
) -> None:
    """Compare ``function(x, weight, bias, **options)`` with the reference in float64; print the first mismatch."""
    generator = torch.Generator().manual_seed(1)
    width = x.shape[-1]
    weight = (1 + 0.5 * torch.randn(width, generator=generator)).to(x)
    bias = torch.randn(width, generator=generator).to(x)
    cotangent = torch.randn(x.shape, generator=generator).to(x)
    actual = gradients(lambda *t: function(*t, **options), x, weight, bias, cotangent=cotangent, default=default)
    expected = gradients(
        lambda *t: ib_norm_reference(*t, **options), x.double(), weight.double(), bias.double(), cotangent=cotangent
    )
    tolerance = TOLERANCE[x.dtype] if tolerance is None else tolerance
    for name, a, e in zip(("y", "dx", "dweight", "dbias"), actual, expected, strict=True):
        assert a.dtype == x.dtype and a.shape == e.shape, name
        scale = e.abs().max().clamp(min=1e-3) if e.numel() else 1
        error = (a.double() - e).abs() / scale
        bad = torch.nonzero(~(error <= tolerance))
        first = tuple(bad[0].tolist()) if len(bad) else ()
        assert not len(bad), (
            f"{name}{list(first)}: got {a[first]}, expected {e[first]}; {len(bad)} of {e.numel()} differ"
        )
