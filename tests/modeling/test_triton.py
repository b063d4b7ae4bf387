# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the reference, under Triton's CPU interpreter, which must be chosen before its import."""

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ibnorm_hf import ib_norm
from ibnorm_hf.modeling import dispatch, functional, fused_triton

from .checks import DEFAULTS, LAYOUTS, ORDERS, assert_matches_reference, make_input

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def compared(device: str) -> int:
    """Every combination, none left to another path; returns how many were compared."""
    from ibnorm_hf.modeling.fused_triton import _CODES, FUSED_TRITON

    triton = partial(ib_norm, backend="triton")
    count = 0
    for variant, order, dtype, width in itertools.product(_CODES, ORDERS, DTYPES, (1, 3, 192, 1023)):
        layout = LAYOUTS[count % len(LAYOUTS)]
        x = make_input(5, width, dtype, layout).to(device)
        assert functional._kernels(x, functional.get_compression(variant), order, "triton") is FUSED_TRITON
        assert_matches_reference(triton, x, norm_type=variant, norm_order=order, norm_lambda=1.5)
        count += 1
        assert_matches_reference(triton, x[:, :3], norm_type=variant, default=DEFAULTS[count % len(DEFAULTS)])
    assert_matches_reference(triton, make_input(300, 24, torch.float32).to(device))  # several rows a program
    assert_matches_reference(
        triton, make_input(130, 4100, torch.bfloat16).to(device)
    )  # more rows than backward programs
    assert_matches_reference(triton, make_input(2, 16384, torch.float32).to(device))
    for x in (torch.full((4, 64), 3.0), make_input(4, 64, torch.float32) * 1e-39):
        assert_matches_reference(triton, x.to(device))
    offset = make_input(4, 64, torch.float32).to(device) + 1000
    assert_matches_reference(triton, offset, tolerance=2e-3)
    assert triton(torch.zeros(0, 8, device=device, requires_grad=True)).shape == (0, 8)
    x, weight = (
        make_input(9, 40, torch.float32).to(device).requires_grad_(),
        torch.ones(40, device=device, requires_grad=True),
    )
    bias = torch.zeros(40, device=device, requires_grad=True)
    for wanted in itertools.product([False, True], repeat=3):  # partial sums exist only for what is wanted
        inputs = [t for t, needed in zip((x, weight, bias), wanted, strict=True) if needed]
        given = [t if needed else t.detach() for t, needed in zip((x, weight, bias), wanted, strict=True)]
        if inputs:
            found, expected = (
                torch.autograd.grad(path(*given), inputs, make_input(9, 40, torch.float32, seed=1).to(device))
                for path in (triton, partial(ib_norm, backend="eager"))
            )
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    return count


def test_interpreted_kernels_match_reference():
    command = [sys.executable, "-c", "from tests.modeling.test_triton import compared; print(compared('cpu'))"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(4 * 2 * 3 * 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is there")
def test_kernels_match_reference_on_a_gpu():
    assert compared("cuda") == 4 * 2 * 3 * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_asked_for_where_it_cannot_run_it_says_so_once_and_falls_back(monkeypatch):
    lines = []
    monkeypatch.setattr(dispatch, "log_once", lines.append)
    x = make_input(5, 24, torch.float32)
    assert torch.equal(ib_norm(x, backend="triton"), ib_norm(x, backend="eager"))
    assert lines and all("the tensor is not on a CUDA device" in line for line in lines)


@pytest.fixture
def registers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes" / "benchmarks"))
    return pytest.importorskip("registers")


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiled_ahead_of_time_for_sm_90_nothing_spills_and_loads_are_wide(registers, direction):
    """Without a GPU: Triton ships the assembler. 760 is no multiple of 16, and its rows are read 16 bytes at a time."""
    for width in (200, 760, 4096):
        row = registers.usage(direction, "ibnorm-l", "bfloat16", width)
        assert row["spilled"] == 0 and 16 <= row["registers"] <= 255 and row["load"] == 16, row
    assert registers.usage(direction, "ibnorm-l", "bfloat16", 761)["load"] <= 4


def test_a_width_is_cut_alike_on_every_machine():
    from ibnorm_hf.modeling.fused_triton import launch_options, programs_for

    assert [programs_for(w) for w in (1, 256, 257, 1024, 2048, 4096, 4097)] == [2048, 2048, 1024, 1024, 512, 256, 128]
    assert [launch_options(w)["ROWS"] for w in (32, 64, 128, 256, 257, 512, 1024)] == [16, 8, 4, 2, 1, 1, 1]
    assert [launch_options(w, s)["ALIGN"] for w, s in ((768, 768), (760, 760), (768, 771), (3, 3))] == [16, 8, 1, 1]


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), OSError("no driver")], ids=str)
def test_where_triton_cannot_build_the_reason_is_a_line(error, monkeypatch):
    class Broken:
        def __getitem__(self, grid):
            raise error

    monkeypatch.setattr(fused_triton, "_probe_kernel", Broken())
    fused_triton._why_no_launch.cache_clear()
    try:
        reason = fused_triton._why_no_launch(torch.device("cpu"))
    finally:
        fused_triton._why_no_launch.cache_clear()
    assert reason == f"Triton cannot build or launch a kernel for cpu ({type(error).__name__}: {error})"


def test_a_graph_for_a_gpu_holds_the_operator_too():
    """Recorded with fake tensors, which need no GPU; what is too old for Triton is left to inductor."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        x = torch.empty(4, 24, device="cuda", dtype=torch.bfloat16)
        graph = make_fx(lambda t: ib_norm(t))(x).graph
    assert torch.ops.ibnorm_hf.forward.default in [node.target for node in graph.nodes]
