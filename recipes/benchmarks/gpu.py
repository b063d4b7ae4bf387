# SPDX-License-Identifier: Apache-2.0
"""Everything that a GPU has to show, in one call of at most ten minutes.

    python recipes/benchmarks/gpu.py [--minutes 9.5]
    TRITON_INTERPRET=1 python recipes/benchmarks/gpu.py --small --out /tmp/gpu     # without a GPU: does it run?

First it holds every variant, order, dtype and many widths against the float64 reference on the card, forward and
backward, and ends with 1 where one differs. Then it times forward and backward against F.layer_norm, LlamaRMSNorm,
torch.compile of the plain path and (where it is installed) Liger, and a training step of a 130M LLaMA over the vanilla
class. It writes checks-cuda.csv, norms-cuda.csv, norms-cuda.png and train_step-cuda.csv, after each part, so that what
is measured stays where the minutes end early; what is left out then is printed. ``--small`` runs the same code on tiny
shapes under Triton's interpreter: its times mean nothing.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import norms
import torch
import train_step
from measure import write_csv
from torch import nn

from ibnorm_hf import ib_norm
from ibnorm_hf.modeling.compression import get_compression
from ibnorm_hf.modeling.functional import ib_norm_reference
from ibnorm_hf.modeling.fused_triton import why_not

VARIANTS = ("ibnorm-l", "ibnorm-t", "ibnorm-s", "ibnorm-sqrt")
ORDERS = ("compress-first", "standardize-first")
# Rounding of a result to its dtype, and of float32 arithmetic inside, relative to the largest value of the result.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = (
    (4096, 768),
    (16384, 768),
    (4096, 2048),
    (16384, 2048),
    (4096, 4096),
    (16384, 4096),
    (65536, 256),
    (4096, 8192),
)


def check(variant: str, order: str, dtype: torch.dtype, rows: int, width: int, device: str) -> dict[str, object]:
    """The largest error of y, dx, dweight and dbias for one case, and whether all are within tolerance."""
    generator = torch.Generator().manual_seed(width)
    x, dy = (torch.randn(rows, width, generator=generator) for _ in range(2))
    weight, bias = torch.randn(2, width, generator=generator)
    given = [t.to(device, dtype) for t in (3 * x + x * x, weight, bias)]
    cotangent = dy.to(device, dtype)
    reason = why_not(given[0], get_compression(variant))
    assert reason is None, reason
    results = []
    for path, kind in ((ib_norm, dtype), (ib_norm_reference, torch.float64)):
        leaves = [t.to(kind).requires_grad_() for t in given]
        more = {"backend": "triton"} if path is ib_norm else {}
        y = path(*leaves, norm_type=variant, norm_order=order, norm_lambda=1.5, **more)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(kind))])
    errors = [
        ((a.double() - e).abs().max() / e.abs().max().clamp(min=1e-3)).item() for a, e in zip(*results, strict=True)
    ]
    row: dict[str, object] = {
        "variant": variant,
        "order": order,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "width": width,
    }
    row |= {f"error_{name}": f"{e:.2e}" for name, e in zip(("y", "dx", "dweight", "dbias"), errors, strict=True)}
    return row | {"right": max(errors) <= TOLERANCE[dtype]}  # nan is not


def checks(small: bool, device: str) -> list[dict[str, object]]:
    """Every case, those with more rows than the backward has programs included."""
    sizes = [(5, 3), (19, 192)] if small else [(5, 1), (4097, 3), (33, 192), (5000, 256), (4097, 760)]
    sizes += [] if small else [(3000, 1023), (1500, 2048), (700, 4096), (300, 8192), (257, 16384)]
    cases = itertools.product(VARIANTS, ORDERS, TOLERANCE, sizes)
    return [check(v, o, d, rows, width, device) for v, o, d, (rows, width) in cases]


def peers(width: int, compiled: bool) -> dict[str, nn.Module]:
    """Those of ``norms.py``, with the kernel asked for by name, and Liger's RMSNorm where it is installed."""
    made = norms.layers(width, compiled)
    for variant in ("ibnorm-l", "ibnorm-t", "ibnorm-s"):
        made[variant] = norms.WithBackend(width, variant, "triton")
    if compiled:  # the plain path, which torch.compile fuses
        for variant in ("ibnorm-l", "ibnorm-t"):
            made[f"{variant}-inductor"] = norms.WithBackend(width, variant, "eager")
            made[f"{variant}-inductor"].compile()
        try:
            from liger_kernel.transformers import LigerRMSNorm

            made["LigerRMSNorm"] = LigerRMSNorm(width)
        except ImportError:
            print("Liger is not installed: left out")
    return made


def measure(given: argparse.Namespace, device: str, ends: float) -> None:
    """Time what the minutes allow, files after each part."""
    table: list[dict[str, object]] = []
    shapes = ((6, 64),) if given.small else SHAPES
    dtypes = (torch.float32,) if given.small else (torch.bfloat16, torch.float32)
    for (rows, width), dtype in itertools.product(shapes, dtypes):
        if time.monotonic() > ends - (0 if given.small else 150):  # the step needs its share
            print(f"left out, the minutes end: {rows} x {width} {dtype}")
            continue
        part = norms.benchmark(rows, width, dtype, device, given.repeats, not given.small, peers)
        table += part
        for r in part:
            print(f"{rows:>6} x {width:<6} {r['dtype']:>9} {r['layer']:<22} {r['both_ms']:>9} ms", flush=True)
        write_csv(given.out / "norms-cuda.csv", table)
    norms.plot(table, given.out / "norms-cuda.png")
    name = "llama-tiny" if given.small else "llama-130m"
    train_step.MODELS["llama-130m"] = ("llama/130m.yaml", 8, 1024, 20)
    steps: list[dict[str, object]] = []
    for mode, dtype in (("eager", "bfloat16"), ("compiled", "bfloat16"), ("eager", "float32")):
        if time.monotonic() > ends or (given.small and (mode, dtype) != ("eager", "float32")):
            print(f"left out: step {mode} {dtype}")
            continue
        steps += train_step.benchmark(name, mode, dtype, ["ibnorm-l"], 2 if given.small else None)
        write_csv(given.out / "train_step-cuda.csv", steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5, help="nothing new is begun after them")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--small", action="store_true", help="tiny shapes, on a CPU under TRITON_INTERPRET=1")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if given.small and given.out == parser.get_default("out"):
        sys.exit("--small measures nothing; name another folder with --out")
    if not given.small and not torch.cuda.is_available():
        sys.exit("no GPU here; --small under TRITON_INTERPRET=1 shows that this script runs")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if given.small:
        given.repeats = 2
    ends = time.monotonic() + 60 * given.minutes
    found = checks(given.small, device)
    write_csv(given.out / "checks-cuda.csv", found)
    wrong = [row for row in found if not row["right"]]
    print(f"{len(found) - len(wrong)} of {len(found)} cases equal the float64 reference within their dtype's rounding")
    for row in wrong:
        print("wrong:", row)
    measure(given, device, ends)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
