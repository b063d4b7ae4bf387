# SPDX-License-Identifier: Apache-2.0
"""Compile the Triton kernels ahead of time for a GPU that need not be there; print registers and spilled bytes.

    python recipes/benchmarks/registers.py [--arch 90] [--widths 256 768 ...] [--variants ibnorm-l ...]

Needs Triton, which ships NVIDIA's assembler; no driver and no GPU. ``load`` is the widest global load, in bytes.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from ibnorm_hf.modeling import fused_triton

TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
COLUMNS = ("kernel", "variant", "dtype", "width", "warps", "registers", "spilled", "load")


def compiled(direction: str, variant: str, dtype: str, width: int, arch: int) -> Any:
    """What Triton makes of a kernel as ``fused_triton`` launches it for contiguous rows with weight and bias."""
    kernel = getattr(fused_triton, f"_{direction}_kernel")
    options = fused_triton.launch_options(width, width)
    constants = {"CODE": fused_triton._CODES[variant], "COMPRESS_FIRST": True, "HAS_WEIGHT": True, "HAS_BIAS": True}
    constants |= {"WANT_DWEIGHT": True, "WANT_DBIAS": True, "PREFETCH": width <= 4096}
    constants |= {name: options[name] for name in ("BLOCK", "ROWS", "ALIGN")}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    pointer = f"*{TYPES[dtype]}"
    types = {"statistics_ptr": "*fp32", "partial_ptr": "*fp32", "lam": "fp32", "inverse": "fp32", "eps": "fp32"}
    signature, hints = {}, {}
    for index, name in enumerate(kernel.arg_names):
        default = pointer if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else types.get(name, default)
        if name.endswith("_ptr") or (name in ("x_stride", "dy_stride", "width") and width % 16 == 0):
            hints[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, hints)
    given = {"num_warps": options["num_warps"], "enable_fp_fusion": options["enable_fp_fusion"]}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=given)


def usage(direction: str, variant: str, dtype: str, width: int, arch: int = 90) -> dict[str, Any]:
    """Registers and spilled bytes a thread, as the assembler counts them, and the widest load in bytes."""
    made = compiled(direction, variant, dtype, width, arch)
    ptx = made.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        target = re.search(r"\.target (sm_\w+)", ptx)
        assert target
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target[1]}", str(source), "-o", f"{folder}/cubin"]
        said = subprocess.run(command, capture_output=True, text=True)
        assert not said.returncode, said.stderr
    registers, spilled = (re.search(p, said.stderr) for p in (r"Used (\d+) registers", r"(\d+) bytes spill stores"))
    assert registers and spilled, said.stderr
    loads = re.findall(r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", ptx)
    return {
        "kernel": direction,
        "variant": variant,
        "dtype": dtype,
        "width": width,
        "warps": made.metadata.num_warps,
        "registers": int(registers[1]),
        "spilled": int(spilled[1]),
        "load": max(int(count or 1) * int(bits) // 8 for count, bits in loads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 760, 768, 2048, 4096, 8192, 16384])
    parser.add_argument("--variants", nargs="+", default=["ibnorm-l"], choices=list(fused_triton._CODES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=list(TYPES))
    given = parser.parse_args()
    print("".join(f"{name:>11}" for name in COLUMNS))
    for direction in ("forward", "backward"):
        for variant in given.variants:
            for dtype in given.dtypes:
                for width in given.widths:
                    row = usage(direction, variant, dtype, width, given.arch)
                    print("".join(f"{row[name]:>11}" for name in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
