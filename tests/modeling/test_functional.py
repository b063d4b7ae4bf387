# SPDX-License-Identifier: Apache-2.0
"""The default path against the reference, the mathematics, and torch's transforms."""

import hashlib
import itertools
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ibnorm_hf import IBNorm, ib_norm, register_compression
from ibnorm_hf.modeling import compression as compression_module
from ibnorm_hf.modeling import dispatch, eager, functional, fused_cpu
from ibnorm_hf.modeling.compression import get_compression
from ibnorm_hf.modeling.eager import EAGER
from ibnorm_hf.modeling.functional import _kernels, ib_norm_reference
from ibnorm_hf.modeling.fused_cpu import FUSED_CPU

from .checks import DEFAULTS, LAYOUTS, ORDERS, VARIANTS, WIDTHS, assert_matches_reference, gradients, make_input

HALF = (torch.float16, torch.bfloat16)
BACKENDS = ("eager", "compiled")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_path_matches_reference(backend, variant, order, dtype, width, layout):
    x = make_input(5, width, dtype, layout)
    assert_matches_reference(partial(ib_norm, backend=backend), x, norm_type=variant, norm_order=order, norm_lambda=1.5)


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_path_matches_reference_whatever_the_default_dtype_and_device(backend, default):
    for variant, order, dtype in itertools.product(VARIANTS, ORDERS, (torch.float32, *HALF)):
        options = {"norm_type": variant, "norm_order": order, "norm_lambda": 1.5, "default": default}
        for width, layout in zip((1, 192, 1023), LAYOUTS, strict=True):
            assert_matches_reference(partial(ib_norm, backend=backend), make_input(65, width, dtype, layout), **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_rows_on_several_threads(backend):
    assert_matches_reference(partial(ib_norm, backend=backend), make_input(301, 760, torch.float32).view(7, 43, 760))


def test_the_default_path_on_cpu_is_the_compiled_one():
    assert _kernels(torch.randn(4, 8), get_compression("ibnorm-l"), "compress-first", None) is FUSED_CPU
    assert _kernels(torch.randn(4, 8).double(), get_compression("ibnorm-l"), "compress-first", None) is EAGER


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck_and_gradgradcheck(variant, order):
    x = make_input(3, 5, torch.float64).requires_grad_()
    weight, bias = (make_input(1, 5, torch.float64, seed=s)[0].requires_grad_() for s in (1, 2))

    def norm(*tensors):
        return ib_norm(*tensors, norm_type=variant, norm_order=order, norm_lambda=0.7)

    assert torch.autograd.gradcheck(norm, (x, weight, bias))
    assert torch.autograd.gradgradcheck(norm, (x, weight, bias))


# A wrong path that the checks above would let pass is a hole in them: each of these edits must be caught.
MUTANTS = {
    "mean of the gradient dropped": ("dd - dd.mean(-1, keepdim=True)", "dd"),
    "mean(dz) dropped": ("dz - dz.mean(-1, keepdim=True) - z", "dz - z"),
    "mean(dz z) dropped": (" - z * (dz * z).mean(-1, keepdim=True)", ""),
    "g' dropped": ("dd = compression.dg(u, s) * dc", "dd = dc"),
    "wrong lambda in backward": ("u = (x32 - mean_x) / lam", "u = (x32 - mean_x) / (2 * lam)"),
    "weight dropped from dx": ("dy32 if weight is None else dy32 * weight", "dy32"),
    "rstd dropped": ("return rstd * (dz", "return (dz"),
    "weight gradient without z": ("_sum_of_rows(dy32 * out)", "_sum_of_rows(dy32)"),
    "forward: mean of c kept": ("z = (c - mean_c) * rstd", "z = c * rstd"),
    "forward: factor lambda lost": ("c = lam * compression.g(", "c = compression.g("),
}
CPP_MUTANTS = {
    "mean of the gradient dropped": ("store(dxr, i, d[i] - mean_d)", "store(dxr, i, d[i])"),
    "mean(dz) dropped": ("g * w[i] - a - z[i] * b", "g * w[i] - z[i] * b"),
    "mean(dz z) dropped": ("sum_z += dz * out", "sum_z += 0"),
    "g' dropped": ("v = slope * (rstd", "v = (rstd"),
    "wrong lambda in backward": ("scale = CompressFirst ? inverse : inverse * rstd", "scale = 2 * inverse"),
    "weight dropped from dx": ("g * w[i] - a", "g - a"),
    "weight gradient without z": ("dw[i] += g * z[i]", "dw[i] += g"),
    "bias gradient dropped": ("          dw[i] += g * z[i];\n          db[i] += g;", "          dw[i] += g * z[i];"),
    "forward: mean of c kept": ("write_affine(yr, c, mean_c,", "write_affine(yr, c, 0.0f,"),
    "log1p coefficient wrong": ("p = p * f + 0.33333951234817505f", "p = p * f + 0.333f"),
}


def apply_mutation(source, original, mutation):
    assert source.count(original) == 1, "the mutated line moved: mend the table of mutants"
    return source.replace(original, mutation)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_the_torch_path_are_caught(name, monkeypatch):
    source = apply_mutation(Path(eager.__file__).read_text(), *MUTANTS[name])
    mutant = types.ModuleType("ibnorm_hf.modeling.mutant")
    monkeypatch.setitem(sys.modules, mutant.__name__, mutant)
    exec(compile(source, "mutant", "exec"), mutant.__dict__)
    x = make_input(5, 24, torch.float32)
    assert_matches_reference(partial(ib_norm, backend="eager"), x, norm_lambda=1.5)
    monkeypatch.setattr(dispatch, "EAGER", mutant.EAGER)
    with pytest.raises(AssertionError, match="differ"):
        assert_matches_reference(partial(ib_norm, backend="eager"), x, norm_lambda=1.5)


@pytest.mark.parametrize("name", CPP_MUTANTS)
def test_mutants_of_the_cpu_kernel_are_caught(name, monkeypatch, tmp_path):
    mutant = apply_mutation(fused_cpu.SOURCE, *CPP_MUTANTS[name])
    x = make_input(5, 24, torch.float32)
    assert_matches_reference(partial(ib_norm, backend="compiled"), x, norm_lambda=1.5)
    monkeypatch.setattr(fused_cpu, "SOURCE", mutant)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fused_cpu._library.cache_clear()
    try:
        with pytest.raises(AssertionError, match="differ"):
            assert_matches_reference(partial(ib_norm, backend="compiled"), x, norm_lambda=1.5)
        assert list(tmp_path.glob("ibnorm_hf/kernels/*.so"))
    finally:
        fused_cpu._library.cache_clear()


@pytest.mark.parametrize("variant", VARIANTS)
def test_huge_lambda_is_layer_norm(variant):
    x = make_input(6, 192, torch.float64)
    cotangent = make_input(6, 192, torch.float64, seed=3)
    ours = gradients(lambda t: ib_norm(t, norm_type=variant, norm_lambda=1e6), x, cotangent=cotangent)
    layer_norm = gradients(lambda t: F.layer_norm(t, (192,), eps=1e-5), x, cotangent=cotangent)
    for a, e in zip(ours, layer_norm, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shift_invariant_and_odd_but_not_scale_invariant(variant):
    x = make_input(6, 192, torch.float64)
    y = ib_norm(x, norm_type=variant)
    torch.testing.assert_close(ib_norm(x + 17.0, norm_type=variant), y)
    torch.testing.assert_close(ib_norm(-x, norm_type=variant), -y)
    assert (ib_norm(10 * x, norm_type=variant) - y).abs().max() > 0.1
    ablated = ib_norm(x, norm_type=variant, norm_order="standardize-first", eps=1e-12)
    torch.testing.assert_close(ib_norm(10 * x, norm_type=variant, norm_order="standardize-first", eps=1e-12), ablated)


def test_a_linear_compression_is_layer_norm(monkeypatch):
    monkeypatch.setattr(compression_module, "_REGISTRY", dict(compression_module._REGISTRY))
    register_compression("linear", lambda u: u * 1.0, lambda u, s: torch.ones_like(u))
    x = make_input(6, 192, torch.float64)
    torch.testing.assert_close(ib_norm(x, norm_type="Linear", norm_lambda=2), F.layer_norm(x, (192,), eps=1e-5))


@pytest.mark.parametrize(
    "std, cosines", [(0.02, (0.99999, 0.99999)), (1.0, (0.998, 0.999)), (4.0, (0.989, 0.965)), (20.0, (0.961, 0.856))]
)
def test_departure_from_layer_norm_grows_with_the_spread(std, cosines):
    x = std * torch.randn(64, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for variant, cosine in zip(("ibnorm-l", "ibnorm-t"), cosines, strict=True):
        y = ib_norm(x, norm_type=variant, norm_lambda=4)
        assert F.cosine_similarity(y, F.layer_norm(x, (4096,)), dim=-1).mean().item() == pytest.approx(cosine, abs=2e-3)


def test_small_inputs_stay_above_eps():
    x = 0.02 * torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    rms = ib_norm(x, norm_lambda=4).square().mean().sqrt().item()
    assert rms == pytest.approx(0.988, abs=2e-3)  # as LayerNorm; without the factor lambda it would be 0.844


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_hard_inputs(backend, variant, order, dtype):
    options = {"norm_type": variant, "norm_order": order}
    ib_norm = partial(functional.ib_norm, backend=backend)
    offset = (make_input(4, 64, torch.float32) + 1000).to(dtype)
    assert_matches_reference(ib_norm, offset, tolerance=2e-3 if dtype == torch.float32 else 2e-2, **options)
    constant = torch.full((4, 64), 3.0, dtype=dtype)
    assert_matches_reference(ib_norm, constant, **options)
    assert_matches_reference(ib_norm, torch.zeros(4, 64, dtype=dtype), **options)
    denormal = make_input(4, 64, torch.float32) * 1e-39
    assert_matches_reference(ib_norm, denormal.to(dtype), **options)
    empty = gradients(lambda t: ib_norm(t, **options), torch.zeros(0, 64, dtype=dtype), cotangent=torch.zeros(0, 64))
    assert [t.shape for t in empty] == [(0, 64), (0, 64)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_values_stay_finite_and_infinity_gives_nan(backend, variant):
    ib_norm = partial(functional.ib_norm, backend=backend)
    x = make_input(4, 64, torch.float32) * 1e29
    for t in gradients(lambda t: ib_norm(t, norm_type=variant), x, cotangent=torch.ones_like(x)):
        assert torch.isfinite(t).all()
    x[0, 0] = torch.inf
    x[1, 0] = torch.nan
    y = ib_norm(x, norm_type=variant)
    assert y[:2].isnan().all() and torch.isfinite(y[2:]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_lives_at_zero_deviation(variant):
    """Autograd of sign(u) ln(1 + |u|) is 0 at u = 0; a constant (padding) row would never learn."""
    x = torch.zeros(1, 8, dtype=torch.float64)
    cotangent = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = gradients(lambda t: F.layer_norm(t, (8,)), x, cotangent=cotangent)[1]
    assert expected.abs().min() > 0
    for path in (ib_norm, ib_norm_reference):
        actual = gradients(lambda t, path=path: path(t, norm_type=variant), x, cotangent=cotangent)[1]
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_saves_no_more_than_layer_norm_and_three_scalars_a_row(backend, dtype, order, affine):
    ib_norm = partial(functional.ib_norm, backend=backend)

    def saved_bytes(function):
        seen = {}

        def pack(t):
            seen[t.data_ptr()] = t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function()
        return sum(seen.values())

    rows, width = 256, 192
    x = make_input(rows, width, dtype).requires_grad_()
    weight, bias = torch.ones(2, width, dtype=dtype, requires_grad=True) if affine else (None, None)
    ours = saved_bytes(lambda: ib_norm(x, weight, bias, norm_order=order))
    layer_norm = saved_bytes(lambda: F.layer_norm(x, (width,), weight, bias))
    assert 0 < ours <= layer_norm + 12 * rows


def test_saves_nothing_without_a_gradient():
    def fail(t):
        raise AssertionError("a tensor was saved")

    with torch.autograd.graph.saved_tensors_hooks(fail, fail), torch.no_grad():
        ib_norm(torch.randn(4, 8, requires_grad=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_never_writes_to_the_callers_tensors_and_repeats_exactly(backend, order):
    ib_norm = partial(functional.ib_norm, backend=backend)

    def digest(*tensors):
        return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()

    x, dy = make_input(300, 192, torch.float32), make_input(300, 192, torch.float32, seed=1)
    weight = make_input(1, 192, torch.float32, seed=2)[0]
    before = digest(x, dy, weight)
    first = gradients(lambda a, w: ib_norm(a, w, norm_order=order), x, weight, cotangent=dy)
    second = gradients(lambda a, w: ib_norm(a, w, norm_order=order), x, weight, cotangent=dy)
    assert digest(x, dy, weight) == before
    assert digest(*first) == digest(*second)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_without_graph_break(variant, order):
    torch.compiler.reset()
    compiled = torch.compile(ib_norm, fullgraph=True, backend="aot_eager")
    assert_matches_reference(compiled, make_input(5, 24, torch.float32), norm_type=variant, norm_order=order)


def test_inductor_matches_reference():
    torch.compiler.reset()
    compiled = torch.compile(ib_norm, fullgraph=True)
    for dtype in (torch.float32, torch.bfloat16):
        assert_matches_reference(compiled, make_input(5, 760, dtype), norm_lambda=1.5)


def test_transforms_of_torch():
    x = make_input(6, 24, torch.float32)
    norm = IBNorm(24)
    y = norm(x)
    torch.testing.assert_close(torch.vmap(norm)(x), y)
    parameters = {"weight": torch.full((24,), 2.0), "bias": torch.ones(24)}
    torch.testing.assert_close(torch.func.functional_call(norm, parameters, (x,)), 2 * y + 1)

    def loss(weight, row):
        return (ib_norm(row, weight) ** 3).sum()

    def reference_loss(weight, row):
        return (ib_norm_reference(row, weight) ** 3).sum()

    per_row = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(norm.weight.detach(), x)
    expected = torch.stack([torch.func.grad(reference_loss)(norm.weight.detach(), row) for row in x])
    torch.testing.assert_close(per_row, expected, rtol=1e-4, atol=1e-4)
    exported = torch.export.export(norm, (x,)).module()
    torch.testing.assert_close(exported(x), y)
    meta = IBNorm(24, device="meta")(x.to("meta"))
    assert meta.shape == x.shape and meta.is_meta


def test_without_a_compiler_one_line_is_logged_and_the_torch_path_runs(monkeypatch, tmp_path):
    lines = []
    monkeypatch.setattr(fused_cpu.logger, "warning", lines.append)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fused_cpu._library.cache_clear()
    try:
        x = make_input(5, 24, torch.float32)
        assert torch.equal(ib_norm(x), ib_norm(x, backend="eager"))
        ib_norm(x, norm_type="ibnorm-t")
    finally:
        fused_cpu._library.cache_clear()
    assert len(lines) == 1 and "/nowhere/g++" in lines[0] and "slower torch path" in lines[0]


def test_checkpointing_is_bit_equal():
    x, dy = make_input(6, 24, torch.float32), make_input(6, 24, torch.float32, seed=1)
    plain = gradients(ib_norm, x, cotangent=dy)
    again = gradients(lambda t: checkpoint(ib_norm, t, use_reentrant=False), x, cotangent=dy)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_dtype_and_the_value(dtype):
    x = make_input(6, 24, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = IBNorm(24)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, ib_norm(x))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm_type": "ibnrm-l"}, r"Unknown compression 'ibnrm-l'; known: .*ibnorm-l, .*Did you mean 'ibnorm-l'\?"),
        ({"norm_order": "compres-first"}, r"Did you mean 'compress-first'\?"),
        ({"norm_lambda": 0}, "norm_lambda must be a finite number above 0, got 0"),
        ({"norm_lambda": float("nan")}, "norm_lambda must be a finite number above 0, got nan"),
        ({"backend": "trition"}, "Unknown backend 'trition'; known: compiled, eager, reference, triton"),
        ({"norm_lambda": True}, "norm_lambda must be a finite number above 0, got True"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ib_norm(torch.zeros(2, 3), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_weight_that_does_not_fit_is_refused_before_it_is_read(name, backend):
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\) on cpu, but x has width 5 and is on cpu"):
        ib_norm(torch.zeros(2, 5), **{name: torch.ones(3)}, backend=backend)
    with pytest.raises(ValueError, match=f"{name} has shape .* on meta"):
        ib_norm(torch.zeros(2, 5), **{name: torch.ones(5, device="meta")}, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_broadcast_inputs_and_gradients(backend):
    """``expand`` and ``.sum()`` give tensors whose strides are 0; one alone of weight and bias is allowed."""
    row = make_input(1, 24, torch.float32)
    weight = make_input(1, 24, torch.float32, seed=1)[0]
    for options in ({}, {"weight": weight}, {"bias": weight}):
        x = row.expand(5, 24).detach().requires_grad_()
        y = ib_norm(x, **options, backend=backend)
        expected = ib_norm_reference(x.double(), **{k: v.double() for k, v in options.items()})
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        cotangent = weight[:1].expand(5, 24)
        (dx,) = torch.autograd.grad(y, x, cotangent)
        (expected_dx,) = torch.autograd.grad(expected, x, cotangent.double())
        torch.testing.assert_close(dx, expected_dx, rtol=1e-4, atol=1e-5)


def test_transforms_that_wrap_anything_but_x():
    x, weight = (
        make_input(5, 24, torch.float32),
        torch.stack([make_input(1, 24, torch.float32, seed=s)[0] for s in (1, 2)]),
    )
    ensemble = torch.vmap(lambda w: ib_norm(x, w))(weight)
    torch.testing.assert_close(ensemble, torch.stack([ib_norm(x, w) for w in weight]))
    torch.testing.assert_close(torch.vmap(lambda b: ib_norm(x, None, b))(weight)[1], ib_norm(x, None, weight[1]))
    row = x[0].detach()
    fast = torch.autograd.functional.jacobian(ib_norm, row, vectorize=True)
    torch.testing.assert_close(fast, torch.autograd.functional.jacobian(ib_norm_reference, row), rtol=1e-4, atol=1e-5)


def test_negated_views_and_scalars():
    x = make_input(5, 24, torch.float32)
    view = torch._neg_view(x)
    torch.testing.assert_close(ib_norm(view), ib_norm(-x))
    with pytest.raises(ValueError, match="x needs at least one dimension"):
        ib_norm(torch.tensor(1.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_wide_rows_with_one_large_value(variant):
    """There the mean of c is many times its deviation, and its variance no difference of two sums."""
    x = make_input(3, 16384, torch.float64)
    x[:, 5] = 1e6
    expected = ib_norm(x, norm_type=variant, backend="reference")
    found = ib_norm(x.float(), norm_type=variant, backend="compiled")
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 2e-6


def test_wide_rows_with_a_large_offset():
    x = make_input(2, 16384, torch.float32) + 10_000
    assert_matches_reference(partial(ib_norm, backend="compiled"), x, tolerance=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", ["x", "weight", "bias", "weight in backward", "dy", "a view", "half of x"])
def test_freed_memory_is_a_sentence_and_neither_a_crash_nor_no_weight(which, backend):
    """As a sharded parameter between its uses: the address is 0, or past the end of what is left."""
    x, dy = make_input(5, 24, torch.float32), make_input(5, 24, torch.float32, seed=1)
    weight, bias = torch.randn(2, 24, generator=torch.Generator().manual_seed(2)).unbind()
    weight, bias, x = weight.clone(), bias.clone(), x.clone().requires_grad_()
    if which == "a view":  # its address is not 0, because it starts inside of what was freed
        weight = torch.ones(48)[24:]
    if "backward" in which or which == "dy":
        y = ib_norm(x, weight, bias, backend=backend)
        (dy if which == "dy" else weight).untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=r"shape \(.*24,?\) that the norm reads has no memory behind it"):
            torch.autograd.grad(y, x, dy)
        return
    tensor = {"x": x, "weight": weight, "bias": bias, "a view": weight, "half of x": x}[which]
    tensor.untyped_storage().resize_(240 if which == "half of x" else 0)
    with pytest.raises(ValueError, match="has no memory behind it: its storage was freed"):
        ib_norm(x, weight, bias, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_that_are_known_to_be_zero_have_no_address(backend):
    x = make_input(5, 24, torch.float32).requires_grad_()
    nothing = torch._efficientzerotensor((5, 24))
    y = ib_norm(x, backend=backend)
    assert torch.equal(torch.autograd.grad(y, x, nothing)[0], torch.zeros(5, 24))
    assert torch.equal(ib_norm(nothing, backend=backend), torch.zeros(5, 24))
    assert torch.equal(ib_norm(x, torch._efficientzerotensor((24,)), backend=backend), torch.zeros(5, 24))
    with pytest.raises((NotImplementedError, RuntimeError), match="parse"):  # torch's own words, no kernel
        ib_norm(x.detach().to_sparse(), backend=backend)


@pytest.mark.parametrize("dimension", [0, 1])
def test_sharded_tensors_even_where_a_dimension_does_not_divide(dimension):
    """Rank 0 of two: rows of a batch of 3, or tokens of 7, are sharded unevenly over a mesh of 2."""
    from torch.distributed.tensor import DeviceMesh, Replicate, Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    x, dy = (make_input(3 * 7, 24, torch.float32, seed=s).view(3, 7, 24) for s in (0, 1))
    weight, bias = (make_input(1, 24, torch.float32, seed=s)[0] for s in (2, 3))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = DeviceMesh("cpu", [0, 1])
        sharded = [distribute_tensor(t, mesh, [Shard(dimension)], src_data_rank=None) for t in (x, dy)]
        whole = [distribute_tensor(t, mesh, [Replicate()], src_data_rank=None) for t in (weight, bias)]
        found = gradients(ib_norm, sharded[0], *whole, cotangent=sharded[1])
        local = [t.to_local() for t in found]
        x, dy = (t.to_local() for t in sharded)
    finally:
        torch.distributed.destroy_process_group()
    assert x.shape[dimension] in (2, 4)
    expected = gradients(ib_norm_reference, x.double(), weight.double(), bias.double(), cotangent=dy)
    for a, e in zip(local, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4)
