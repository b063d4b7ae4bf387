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
from ibnorm_hf.modeling import dispatch, functional

from .checks import DEFAULTS, LAYOUTS, ORDERS, VARIANTS, assert_matches_reference, make_input

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def interpreted() -> int:
    """Run in the subprocess: every combination, none left to another path; returns how many were compared."""
    from ibnorm_hf.modeling.fused_triton import FUSED_TRITON

    triton = partial(ib_norm, backend="triton")
    count = 0
    for variant, order, dtype, width in itertools.product(VARIANTS, ORDERS, DTYPES, (1, 3, 192, 1023)):
        layout = LAYOUTS[count % len(LAYOUTS)]
        x = make_input(5, width, dtype, layout)
        assert functional._kernels(x, functional.get_compression(variant), order, "triton") is FUSED_TRITON
        assert_matches_reference(triton, x, norm_type=variant, norm_order=order, norm_lambda=1.5)
        count += 1
        assert_matches_reference(triton, x[:, :3], norm_type=variant, default=DEFAULTS[count % len(DEFAULTS)])
    assert_matches_reference(triton, make_input(300, 24, torch.float32))  # more rows than backward programs
    assert_matches_reference(triton, make_input(2, 16384, torch.float32))
    for x in (torch.full((4, 64), 3.0), make_input(4, 64, torch.float32) * 1e-39):
        assert_matches_reference(triton, x)
    offset = make_input(4, 64, torch.float32) + 1000
    assert_matches_reference(triton, offset, tolerance=2e-3)
    assert triton(torch.zeros(0, 8, requires_grad=True)).shape == (0, 8)
    return count


def test_interpreted_kernels_match_reference():
    command = [sys.executable, "-c", "from tests.modeling.test_triton import interpreted; print(interpreted())"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(4 * 2 * 3 * 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_asked_for_where_it_cannot_run_it_says_so_once_and_falls_back(monkeypatch):
    lines = []
    monkeypatch.setattr(dispatch, "log_once", lines.append)
    x = make_input(5, 24, torch.float32)
    assert torch.equal(ib_norm(x, backend="triton"), ib_norm(x, backend="eager"))
    assert lines and all("the tensor is not on a CUDA device" in line for line in lines)
