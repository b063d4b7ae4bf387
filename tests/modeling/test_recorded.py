# SPDX-License-Identifier: Apache-2.0
"""Where operators are recorded, rewritten or saved: the kernel stays, or plain torch stands in and says so."""

import functools
import io
import warnings

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor import lowering
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from ibnorm_hf import IBNorm, create_norm, ib_norm, list_norms
from ibnorm_hf.modeling import dispatch, functional, ops
from ibnorm_hf.modeling.fused_cpu import FUSED_CPU

from .checks import ORDERS, gradients, make_input

FORWARD, BACKWARD = torch.ops.ibnorm_hf.forward.default, torch.ops.ibnorm_hf.backward.default


@pytest.fixture
def fast(monkeypatch):
    """Counts what runs by address; each entry is a kernel."""
    seen = []
    real = dispatch.plain_kernels

    def spy(*given):
        seen.append(real(*given))
        return seen[-1]

    for module in (ops, functional):
        monkeypatch.setattr(module, "plain_kernels", spy)
    return seen


@pytest.fixture
def lines(monkeypatch):
    seen = []
    monkeypatch.setattr(functional, "log_once", seen.append)
    return seen


def problem():
    x, dy = make_input(6, 24, torch.float32), make_input(6, 24, torch.float32, seed=1)
    weight, bias = (make_input(1, 24, torch.float32, seed=s)[0] for s in (2, 3))
    return (x, weight, bias), dy


@pytest.mark.parametrize("order", ORDERS)
def test_a_compiled_graph_holds_the_kernel_forward_and_backward(order, fast):
    torch.compiler.reset()
    nodes = []

    def record(graph, _):
        nodes.extend(node.target for node in graph.graph.nodes)
        return torch._functorch.aot_autograd.make_boxed_func(graph.forward)

    norm = functools.partial(ib_norm, norm_type="ibnorm-t", norm_order=order)
    compiled = torch.compile(norm, fullgraph=True, backend=aot_autograd(fw_compiler=record, bw_compiler=record))
    inputs, dy = problem()
    found = gradients(compiled, *inputs, cotangent=dy)
    assert nodes.count(FORWARD) == nodes.count(BACKWARD) == 1 and fast == [FUSED_CPU] * 2
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(norm, *inputs, cotangent=dy), strict=True))


def test_double_precision_and_registered_compressions_are_fused_by_the_compiler():
    """What no kernel can take is recorded as plain operations, which inductor fuses with their neighbours."""
    inputs, _ = problem()
    program = torch.export.export(IBNorm(24).double(), (inputs[0].double(),))
    assert FORWARD not in [node.target for node in program.graph.nodes]


def test_one_graph_for_every_lambda():
    """Annealing changes lambda at every step."""
    torch.compiler.reset()
    norm, counter = IBNorm(24), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(norm, fullgraph=True, backend=counter)
    (x, *_), dy = problem()
    for step in range(14):
        norm.norm_lambda = 1.0 + 0.37 * step
        found, expected = (gradients(f, x, cotangent=dy) for f in (compiled, norm))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counter.frame_count <= 2


def test_inductor_keeps_the_operator_where_ci_is_set(monkeypatch, fast):
    """There it refuses an operator that has a decomposition, unless told; a process meets it at its first lowering."""
    torch.compiler.reset()
    monkeypatch.setenv("CI", "true")
    monkeypatch.delitem(lowering.lowerings, FORWARD, raising=False)
    lowering.FALLBACK_ALLOW_LIST.discard("ibnorm_hf::forward")
    ops._kept_by_inductor.cache_clear()
    (x, weight, bias), _ = problem()
    with inductor_config.patch(fx_graph_cache=False), functorch_config.patch(enable_autograd_cache=False):
        found = torch.compile(ib_norm, fullgraph=True)(x, weight, bias)
    assert torch.equal(found, ib_norm(x, weight, bias))
    assert FORWARD in lowering.lowerings and fast == [FUSED_CPU] * 2


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE])
def test_selective_checkpointing_runs_the_kernel_and_may_keep_its_output(policy, fast, lines):
    inputs, dy = problem()
    expected = gradients(ib_norm, *inputs, cotangent=dy)
    fast.clear()

    def choose(context, operator, *_, **__):
        return policy if operator == FORWARD else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, choose)
    norm = functools.partial(checkpoint, ib_norm, use_reentrant=False, context_fn=contexts)
    found = gradients(norm, *inputs, cotangent=dy)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert fast == [FUSED_CPU] * (2 if policy == CheckpointPolicy.MUST_SAVE else 3) and not lines


def test_a_counting_mode_sees_one_operator_and_the_kernel_runs(fast, lines):
    with FlopCounterMode(display=False):
        ib_norm(problem()[0][0])
    assert fast == [FUSED_CPU] and not lines


def test_fake_tensors_have_the_shapes_and_dtypes_of_the_real_ones():
    for dtype in (torch.float32, torch.bfloat16):
        inputs, dy = problem()
        inputs = tuple(t.to(dtype) for t in inputs)
        real = gradients(ib_norm, *inputs, cotangent=dy)
        with FakeTensorMode() as mode:
            inputs = [mode.from_tensor(t) for t in inputs]
            fake = gradients(ib_norm, *inputs, cotangent=mode.from_tensor(dy))
        for a, b in zip(fake, real, strict=True):
            assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)


def test_the_operators_keep_what_torch_asks_of_operators():
    (x, weight, bias), dy = problem()
    lam = torch.tensor(1.5, dtype=torch.float64)
    for t in (x, x.t().contiguous().t(), x.double(), x[0]):
        torch.library.opcheck(FORWARD, (t, weight, bias, "ibnorm-l", lam, 1e-5, ORDERS[0]))
        _, statistics = FORWARD(t, weight, bias, "ibnorm-l", lam, 1e-5, ORDERS[0])
        cotangent = dy[0] if t.dim() == 1 else dy.to(t.dtype)
        for wanted in ((True, True, True), (False, True, False)):
            torch.library.opcheck(BACKWARD, (cotangent, t, weight, statistics, "ibnorm-l", lam, ORDERS[0], *wanted))


def test_export_keeps_the_operator_and_can_do_without_it():
    norm, (x, *_) = IBNorm(24), problem()[0]
    program = torch.export.export(norm, (x,))
    assert FORWARD in [node.target for node in program.graph.nodes]
    assert torch.equal(program.module()(x), norm(x))
    plain = program.run_decompositions({FORWARD: torch._decomp.decomposition_table[FORWARD]})
    assert FORWARD not in [node.target for node in plain.graph.nodes]
    torch.testing.assert_close(plain.module()(x), norm(x))


def test_what_falls_back_to_plain_torch_says_so(lines):
    x, weight = make_input(5, 24, torch.float32), torch.ones(24)

    class Tagged(torch.Tensor):
        pass

    ib_norm(x, weight)
    assert not lines
    torch.vmap(ib_norm)(x)
    assert lines == [
        "IBNorm runs in plain torch here, several times slower than its kernel: a transform of torch.func is at work."
    ]
    lines.clear()
    ib_norm(x.as_subclass(Tagged), weight)
    assert lines[0].endswith("a tensor is a Tagged.")
    lines.clear()
    torch.vmap(ib_norm)(x.double())  # no kernel would take it anyhow
    assert not lines


@pytest.mark.parametrize("area", ["token", "batch", "channel"])
@pytest.mark.parametrize("no_grad", [False, True])
def test_a_trace_is_saved_and_repeats_every_norm(area, no_grad):
    shape = (4, 24) if area == "token" else (2, 6, 3, 3)
    x, other = (torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    for name in list_norms(area):
        norm = create_norm(name, shape[1], area=area).eval()
        file = io.BytesIO()
        with torch.set_grad_enabled(not no_grad), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript; there are files of it all the same
            torch.jit.save(torch.jit.trace(norm, (x,)), file)
            file.seek(0)
            loaded = torch.jit.load(file)
        torch.testing.assert_close(loaded(other), norm(other), rtol=1e-5, atol=1e-5)
        if not no_grad and name.startswith("ibnorm"):  # equal values have deviation 0, where g' must be 1
            flat, dy = torch.zeros(shape), other
            found, expected = (gradients(f, flat, cotangent=dy) for f in (loaded, norm))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("area", ["token", "batch"])
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_agrees_with_torch(area, dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    shape = (4, 24) if area == "token" else (2, 6, 3, 3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    names = [n for n in list_norms(area) if n.startswith("ibnorm-")]
    model = torch.nn.ModuleList(create_norm(name, shape[1], area=area) for name in names).eval()

    class All(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = model

        def forward(self, t):
            return torch.stack([norm(t) for norm in self.norms])

    path = tmp_path / "norms.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(All().eval(), (x,), path, dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), All()(x), rtol=1e-5, atol=1e-5)
    assert len(names) >= 4
