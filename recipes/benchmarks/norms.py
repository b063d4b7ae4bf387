# SPDX-License-Identifier: Apache-2.0
"""Time and memory of one normalization layer, against its peers and the copy bandwidth of the same run.

    python recipes/benchmarks/norms.py [--threads 1] [--repeats 30] [--shapes 4096x768 ...] [--dtypes float32 ...]

Bytes are those an operation must move: forward reads x and writes y, backward reads x and dy and writes dx. A copy
reads and writes as many bytes as a forward, of a tensor of the same shape. Writes results/norms-{cpu,cuda}.csv and a
PNG.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import interleave, quantiles, ratio, write_csv
from torch import Tensor, nn
from torch.profiler import profile
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ibnorm_hf import create_norm, ib_norm

RESULTS = Path(__file__).parent / "results"


class WithBackend(nn.Module):
    """``ib_norm`` with parameters of its own, on a named path."""

    def __init__(self, width: int, norm_type: str, backend: str | None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.options = {"norm_type": norm_type, "backend": backend}

    def forward(self, x: Tensor) -> Tensor:
        return ib_norm(x, self.weight, self.bias, **self.options)


def layers(width: int, compiled: bool) -> dict[str, nn.Module]:
    """The peers, by the name they have in the table; ``*-compiled`` is torch.compile of the module alone."""
    made: dict[str, nn.Module] = {
        "F.layer_norm": nn.LayerNorm(width),
        "torch.nn.RMSNorm": nn.RMSNorm(width),
        "LlamaRMSNorm": LlamaRMSNorm(width),
        "NormalNorm": create_norm("normalnorm", width),
        "DynamicTanh": create_norm("dyt", width),
        "ibnorm-l": WithBackend(width, "ibnorm-l", None),
        "ibnorm-t": WithBackend(width, "ibnorm-t", None),
        "ibnorm-s": WithBackend(width, "ibnorm-s", None),
        "ibnorm-l-eager": WithBackend(width, "ibnorm-l", "eager"),
        "ibnorm-t-eager": WithBackend(width, "ibnorm-t", "eager"),
    }
    if not compiled:
        return made
    for name, fresh in (
        ("LlamaRMSNorm", LlamaRMSNorm(width)),
        ("NormalNorm", create_norm("normalnorm", width)),
        ("DynamicTanh", create_norm("dyt", width)),
        ("ibnorm-l", WithBackend(width, "ibnorm-l", None)),
        ("ibnorm-t", WithBackend(width, "ibnorm-t", None)),
    ):
        fresh.compile()
        made[f"{name}-compiled"] = fresh
    return made


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes autograd keeps between forward and backward, each storage once."""
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        seen[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return sum(seen.values())


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Most bytes allocated at once above the start, in one forward and backward."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as trace:
        step()
    now = peak = 0
    for event in sorted(trace.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def benchmark(
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: str,
    repeats: int,
    compiled: bool,
    make: Callable[[int, bool], dict[str, nn.Module]] = layers,
) -> list[dict[str, object]]:
    """One CSV row a layer of ``make(width, compiled)`` for one shape and dtype."""
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).to(device, dtype).requires_grad_()
    dy = torch.randn(rows, width, generator=generator).to(device, dtype)
    target = torch.empty_like(dy)
    modules = {name: module.to(device, dtype) for name, module in make(width, compiled).items()}
    outputs: dict[str, Tensor] = {}

    def forward(name: str) -> None:
        outputs[name] = modules[name](x)

    def backward(name: str) -> None:
        torch.autograd.grad(outputs.pop(name), [x, *modules[name].parameters()], dy)

    jobs: dict[str, Callable[[], None]] = {"copy": partial(target.copy_, dy)}
    for name in modules:
        jobs[f"{name} forward"] = partial(forward, name)
        jobs[f"{name} backward"] = partial(backward, name)
    times = interleave(jobs, repeats, warmup=3)
    both = {n: [f + b for f, b in zip(times[f"{n} forward"], times[f"{n} backward"], strict=True)] for n in modules}
    size = x.numel() * x.element_size()
    copy_rate = 2 * size / quantiles(times["copy"])[1]
    table = []
    for name in modules:
        low, median, high = quantiles(both[name])
        forward_s, backward_s = (quantiles(times[f"{name} {d}"])[1] for d in ("forward", "backward"))
        table.append(
            {
                "layer": name,
                "rows": rows,
                "width": width,
                "dtype": str(dtype).removeprefix("torch."),
                "forward_ms": f"{forward_s * 1e3:.3f}",
                "backward_ms": f"{backward_s * 1e3:.3f}",
                "both_ms": f"{median * 1e3:.3f}",
                "both_ms_q20": f"{low * 1e3:.3f}",
                "both_ms_q80": f"{high * 1e3:.3f}",
                "over_layer_norm": f"{ratio(both, name, 'F.layer_norm')[1]:.3f}",
                "over_llama_rms_norm": f"{ratio(both, name, 'LlamaRMSNorm')[1]:.3f}",
                "must_move_mb": f"{5 * size / 1e6:.1f}",
                "forward_gb_s": f"{2 * size / forward_s / 1e9:.2f}",
                "backward_gb_s": f"{3 * size / backward_s / 1e9:.2f}",
                "copy_gb_s": f"{copy_rate / 1e9:.2f}",
                "forward_percent_of_copy": f"{100 * 2 * size / forward_s / copy_rate:.1f}",
                "backward_percent_of_copy": f"{100 * 3 * size / backward_s / copy_rate:.1f}",
                "saved_mb": f"{saved_bytes(modules[name], x) / 1e6:.3f}",
                "peak_mb": f"{peak_bytes(lambda n=name: (forward(n), backward(n)), device) / 1e6:.1f}",
            }
        )
    return table


def plot(table: list[dict[str, object]], path: Path) -> None:
    """Bandwidth each layer reaches, forward and backward together, under the copy line of its shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys((r["rows"], r["width"], r["dtype"]) for r in table))
    figure, axes = pyplot.subplots(1, len(cases), figsize=(3.2 * len(cases), 4.6), sharey=True, layout="constrained")
    for axis, case in zip(axes if len(cases) > 1 else [axes], cases, strict=True):
        rows = [r for r in table if (r["rows"], r["width"], r["dtype"]) == case]
        rates = [float(r["must_move_mb"]) / float(r["both_ms"]) for r in rows]
        colors = ["tab:blue" if str(r["layer"]).startswith("ibnorm") else "tab:gray" for r in rows]
        axis.barh([str(r["layer"]) for r in rows], rates, color=colors)
        axis.axvline(float(rows[0]["copy_gb_s"]), color="black", linestyle="--", linewidth=1, label="copy")
        axis.set_title(f"{case[0]} x {case[1]}\n{case[2]}", fontsize=9)
        axis.set_xlabel("GB/s that must move", fontsize=8)
        axis.legend(fontsize=7)
    axis.invert_yaxis()  # shared by all
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of one, CPU seconds are counted")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--shapes", nargs="+", default=["4096x768", "2048x2048", "8192x512"], metavar="ROWSxWIDTH")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--without", nargs="+", default=[], metavar="LAYER", help="leave these rows out")
    parser.add_argument("--no_compile", action="store_true", help="leave the torch.compile rows out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table: list[dict[str, object]] = []

    def made(width: int, compiled: bool) -> dict[str, nn.Module]:
        return {name: layer for name, layer in layers(width, compiled).items() if name not in arguments.without}

    for shape in arguments.shapes:
        rows, width = map(int, shape.split("x"))
        for dtype in arguments.dtypes:
            compiled = not arguments.no_compile
            part = benchmark(rows, width, getattr(torch, dtype), device, arguments.repeats, compiled, made)
            table += part
            for r in part:
                print(
                    f"{shape:>10} {dtype:>8} {r['layer']:<22} {r['both_ms']:>9} ms"
                    f"  {r['over_layer_norm']:>7} x F.layer_norm  {r['over_llama_rms_norm']:>7} x LlamaRMSNorm",
                    flush=True,
                )
    write_csv(arguments.out / f"norms-{device}.csv", table)
    plot(table, arguments.out / f"norms-{device}.png")


if __name__ == "__main__":
    main()
