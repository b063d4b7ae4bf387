# SPDX-License-Identifier: Apache-2.0
"""The batch area: values and gradients against a reference, running statistics, and each batch counted once."""

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ibnorm_hf import IBBatchNorm2d, create_norm, list_norms
from ibnorm_hf.modeling import batch_functional
from ibnorm_hf.modeling.batch_functional import batch_ib_norm, batch_ib_norm_reference
from ibnorm_hf.modeling.batch_norms import NormalBatchNorm2d
from ibnorm_hf.modeling.compression import get_compression

from .checks import DEFAULTS, TOLERANCE, VARIANTS, gradients

LAYOUTS = ("contiguous", "channels_last", "sliced")
SHAPES = ((2, 3, 4, 5), (1, 1, 1, 7), (6, 5, 1, 1), (3, 16, 9, 2))
BATCH_NORMS = (*VARIANTS, "normalnorm-noiseless")


def images(shape, dtype=torch.float32, layout="contiguous", seed=0):
    """Skewed values, std about 3, another mean in each channel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = (3 * x + x * x + torch.arange(shape[1])[:, None, None]).to(dtype)
    if layout == "sliced":
        return torch.stack([x, x + 1], -1)[..., 0]
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def affine(channels, dtype):
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    return (1 + weight / 2).to(dtype), bias.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_the_reference(variant, shape, layout, dtype):
    x = images(shape, dtype, layout)
    options = (get_compression(variant), 1.7, 1e-5)
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    inputs = (x, *affine(shape[1], dtype))
    actual = gradients(lambda *t: batch_ib_norm(*t, *options)[0], *inputs, cotangent=cotangent)
    doubled = [t.double() for t in inputs]
    expected = gradients(lambda *t: batch_ib_norm_reference(*t, *options)[0], *doubled, cotangent=cotangent)
    for name, a, e in zip(("y", "dx", "dweight", "dbias"), actual, expected, strict=True):
        assert a.dtype == dtype and a.shape == e.shape
        scale = e.abs().max().clamp(min=1e-2)
        assert ((a.double() - e).abs() / scale).max() <= TOLERANCE[dtype], name
    if layout == "channels_last" and shape[1] > 1:
        assert actual[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
def test_the_default_dtype_and_device_of_the_process_change_nothing(default):
    shape = (3, 4, 5, 2)
    for variant, dtype in itertools.product(VARIANTS, (torch.float32, torch.bfloat16, torch.float64)):
        inputs = (images(shape, dtype), *affine(shape[1], dtype))
        cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)

        def norm(*tensors, variant=variant):
            return batch_ib_norm(*tensors, get_compression(variant), 1.7, 1e-5)[0]

        plain = gradients(norm, *inputs, cotangent=cotangent)
        other = gradients(norm, *inputs, cotangent=cotangent, default=default)
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_reference_is_the_definition():
    x = images((3, 2, 4, 4), torch.float64)
    weight, bias = affine(2, torch.float64)
    y, _ = batch_ib_norm_reference(x, weight, bias, get_compression("ibnorm-t"), 2.0, 1e-3)
    for channel in range(2):
        values = x[:, channel]
        c = 2 * torch.tanh((values - values.mean()) / 2)
        z = (c - c.mean()) / torch.sqrt(c.var(correction=0) + 1e-3)
        torch.testing.assert_close(y[:, channel], weight[channel] * z + bias[channel])


def test_large_lambda_is_batchnorm():
    x = images((4, 3, 5, 5), torch.float64)
    ours, torchs = IBBatchNorm2d(3, norm_lambda=1e9).double(), nn.BatchNorm2d(3).double()
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_gradcheck(name, training):
    """torch's gradcheck projects on a random cotangent in fast mode, and on every unit vector here."""
    norm = create_norm(name, 2, area="batch").double()
    norm(images((3, 2, 2, 3), torch.float64, seed=5))
    norm.train(training)
    frozen = copy.deepcopy(norm)

    def function(x, weight, bias):
        return torch.func.functional_call(copy.deepcopy(frozen), {"weight": weight, "bias": bias}, (x,))

    inputs = (images((2, 2, 3, 2), torch.float64), *affine(2, torch.float64))
    leaves = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, leaves)
    if name.startswith("ibnorm"):
        assert torch.autograd.gradgradcheck(function, leaves)


MUTANTS = {
    "no slope of g": ("_dlog", lambda u, s: torch.ones_like(u)),
    "slope of another lambda": ("_dlog", lambda u, s: 1 / (1 + 2 * u.abs())),
}


@pytest.mark.parametrize("mutant", [*MUTANTS, "mean of dd kept", "stale mean of c", "unbiased variance"])
def test_a_wrong_backward_is_noticed(mutant, monkeypatch):
    """The comparison with the reference turns red for each; with ``y.sum()`` as the loss most would pass."""
    compression = get_compression("ibnorm-l")
    shape = (3, 2, 3, 3)
    inputs = (images(shape, torch.float64), *affine(2, torch.float64))
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    right = gradients(lambda *t: batch_ib_norm_reference(*t, compression, 1.7, 1e-5)[0], *inputs, cotangent=cotangent)
    kernel = torch.ops.aten.native_batch_norm_backward
    if mutant in MUTANTS:
        compression = batch_functional.Compression("broken", compression.g, MUTANTS[mutant][1], 4.0)
    elif mutant == "mean of dd kept":
        calls = iter(range(3))  # the mean of x forward, the mean of x backward, the mean of dd
        real = batch_functional.column
        monkeypatch.setattr(batch_functional, "column", lambda v: real(v) * (next(calls) < 2))
    else:
        change = {
            "stale mean of c": lambda mean, rstd: (mean + 0.1, rstd),
            "unbiased variance": lambda mean, rstd: (mean, rstd * (26 / 27) ** 0.5),
        }[mutant]

        def broken(dy, c, weight, a, b, mean, rstd, *rest):
            return kernel(dy, c, weight, a, b, *change(mean, rstd), *rest)

        monkeypatch.setattr(torch.ops.aten, "native_batch_norm_backward", broken)
    wrong = gradients(lambda *t: batch_ib_norm(*t, compression, 1.7, 1e-5)[0], *inputs, cotangent=cotangent)
    assert (wrong[1] - right[1]).abs().max() / right[1].abs().max() > 1e-3


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_with_momentum_1_and_one_batch_evaluation_repeats_training(name):
    norm = create_norm(name, 3, area="batch")
    norm.momentum = 1.0
    with torch.no_grad():
        norm.weight.copy_(affine(3, torch.float32)[0])
    x = images((4, 3, 5, 5))
    trained = norm(x)
    assert not torch.allclose(create_norm(name, 3, area="batch").eval()(x), trained, atol=1e-2)
    torch.testing.assert_close(norm.eval()(x), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics(momentum):
    norm = IBBatchNorm2d(2, momentum=momentum, norm_type="ibnorm-s", norm_lambda=2).double()
    buffers = dict(norm.named_buffers())
    batches = [images((4, 2, 3, 3), torch.float64, seed=s) for s in range(3)]
    running = {"running_mean": torch.zeros(2), "running_compressed_mean": torch.zeros(2)}
    running["running_compressed_var"] = torch.ones(2)
    for count, x in enumerate(batches, 1):
        norm(x)
        d = x - x.mean((0, 2, 3), keepdim=True)
        c = d / (1 + d.abs() / 2)
        new = (x.mean((0, 2, 3)), c.mean((0, 2, 3)), c.var((0, 2, 3), correction=0))
        share = 1 / count if momentum is None else momentum
        for name, value in zip(running, new, strict=True):
            running[name] = (1 - share) * running[name] + share * value
    assert norm.num_batches_tracked.item() == 3
    for name, expected in running.items():
        torch.testing.assert_close(getattr(norm, name), expected.double())
        assert getattr(norm, name) is buffers[name]  # in place: DDP and compiled graphs hold on to it
    norm.reset_running_stats()
    assert torch.equal(norm.running_compressed_var, torch.ones(2)) and norm.num_batches_tracked.item() == 0


def test_state_dict_names():
    ours, torchs = set(IBBatchNorm2d(2).state_dict()), set(nn.BatchNorm2d(2).state_dict())
    assert ours & torchs == {"weight", "bias", "running_mean", "num_batches_tracked"}
    assert ours - torchs == {"running_compressed_mean", "running_compressed_var"}
    normal = set(NormalBatchNorm2d(2).state_dict())
    assert normal - torchs == {"running_exponent"} and torchs <= normal


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_without_tracking_evaluation_uses_its_own_batch(name):
    x = images((4, 3, 5, 5))
    tracking = create_norm(name, 3, area="batch")
    cls, options = type(tracking), {"noise": False} if "normal" in name else {"norm_type": name}
    norm = cls(3, track_running_stats=False, affine=False, **options)
    assert not norm.state_dict()
    assert torch.equal(norm.eval()(x), tracking(x).detach())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", [*BATCH_NORMS, "normalnorm"])
def test_checkpointing_counts_a_batch_once(name, reentrant):
    x = images((4, 3, 5, 5)).requires_grad_()
    cotangent = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))

    def run(through):
        torch.manual_seed(0)
        norm = create_norm(name, 3, area="batch")
        y = through(norm, x)
        (dx,) = torch.autograd.grad(y, x, cotangent) if not reentrant else (None,)
        if reentrant:
            x.grad = None
            y.backward(cotangent)
            dx = x.grad
        return [y, dx, *norm.buffers()]

    plain = run(lambda norm, t: norm(t))
    repeated = run(partial(checkpoint, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, repeated, strict=True))
    assert plain[-1].item() == 1


@pytest.mark.parametrize("name", ["ibnorm-l", "ibnorm-t", "normalnorm-noiseless"])
def test_compiles_as_one_graph_and_counts_once(name):
    torch.compiler.reset()
    x = images((4, 3, 5, 5)).requires_grad_()
    cotangent = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    results = []
    for compiled in (False, True):
        norm = create_norm(name, 3, area="batch")
        call = torch.compile(norm, fullgraph=True, backend="aot_eager") if compiled else norm
        y = call(x)
        (dx,) = torch.autograd.grad(y, x, cotangent)
        results.append([y, dx, *norm.buffers()])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-5, atol=1e-5)


def test_autocast_keeps_float32_inside():
    convolution, norm = nn.Conv2d(3, 3, 1), IBBatchNorm2d(3)
    x = images((4, 3, 5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        before = convolution(x)
        y = norm(before)
    assert before.dtype == y.dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32
    expected = IBBatchNorm2d(3)(before.float())
    torch.testing.assert_close(y.float(), expected, rtol=0.01, atol=0.01)
    y.backward(torch.randn_like(y))
    assert convolution.weight.grad.isfinite().all() and norm.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", [*BATCH_NORMS, "batchnorm"])
def test_one_value_a_channel_is_an_error_in_training_only(name):
    norm = create_norm(name, 3, area="batch")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        norm(torch.randn(1, 3, 1, 1))
    assert norm.eval()(torch.randn(1, 3, 1, 1)).isfinite().all()
    if name != "batchnorm":
        with pytest.raises(ValueError, match=r"expected an input of shape \(N, 3, H, W\), got \(2, 3\)"):
            norm(torch.randn(2, 3))


def test_constant_channels_and_huge_values_stay_finite():
    x = images((4, 3, 5, 5))
    x[:, 0] = 7.0
    x[:, 1] *= 1e18
    leaf = x.requires_grad_()
    y = IBBatchNorm2d(3)(leaf)
    (dx,) = torch.autograd.grad(y, leaf, torch.randn_like(y))
    assert y.isfinite().all() and dx.isfinite().all() and dx[:, 0].abs().max() > 0


def test_normalnorm_noise_and_exponent():
    x = images((16, 2, 20, 20))
    noisy, silent = create_norm("normalnorm", 2, area="batch"), create_norm("normalnorm-noiseless", 2, area="batch")
    clean = silent(x)
    torch.manual_seed(0)
    y = noisy(x)
    scale = (clean - clean.mean((0, 2, 3), keepdim=True)).abs().mean((0, 2, 3), keepdim=True)
    assert ((y - clean) / scale).std().item() == pytest.approx(0.4, abs=0.01)
    torch.testing.assert_close(noisy.running_exponent, silent.running_exponent)
    assert not torch.allclose(silent.running_exponent, torch.ones(2), atol=1e-3)
    assert torch.equal(noisy.eval()(x), silent.eval()(x))


@pytest.mark.parametrize("area", ["batch", "channel"])
@pytest.mark.parametrize("affine, bias", [(True, True), (True, False), (False, True)])
def test_every_name_makes_a_norm_of_images(area, affine, bias):
    for name in list_norms(area):
        norm = create_norm(name, 6, area=area, norm_affine=affine, norm_bias=bias)
        names = {n for n, _ in norm.named_parameters()} & {"weight", "bias"}
        assert names == ({"weight", "bias"} if affine and bias else {"weight"} if affine else set()), name
        x = images((2, 6, 3, 3)).requires_grad_()
        y = norm(x)
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert y.shape == x.shape and dx.isfinite().all() and dx.abs().max() > 0
        assert set(norm.state_dict()) >= names and all("." not in key for key in norm.state_dict())


@pytest.mark.parametrize("name", list_norms("channel"))
def test_channel_norms_are_the_token_norms_of_pixels(name):
    x = images((2, 6, 3, 3))
    torch.manual_seed(0)
    y = create_norm(name, 6, area="channel").eval()(x)
    tokens = create_norm(name, 6).eval()(x.permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(y, tokens.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("batchnorm", {}, "'batchnorm' is for a host that normalizes over the batch"),
        ("batchnorm", {"area": "channel"}, "'batchnorm' is for a host that normalizes over the batch"),
        ("ibnorm-l", {"area": "batch", "norm_order": "standardize-first"}, "over a batch there is only one order"),
        ("ibnorm-l", {"area": "bach"}, "Unknown area 'bach'; known: batch, channel, token. Did you mean 'batch'?"),
        ("batchnorm", {"area": "batch", "norm_lambda": 2}, "norm_lambda=2 has no meaning for 'batchnorm'"),
    ],
)
def test_errors_say_what_to_do(name, options, message):
    with pytest.raises(ValueError) as error:
        create_norm(name, 8, **options)
    assert message in str(error.value)


def test_an_ensemble_of_batches():
    x = torch.stack([images((2, 4, 3, 3), torch.float64, seed=s) for s in range(3)])
    weight, bias = affine(4, torch.float64)

    def norm(t):
        return batch_ib_norm(t, weight, bias, get_compression("ibnorm-t"), 1.7, 1e-5)[0]

    torch.testing.assert_close(torch.vmap(norm)(x), torch.stack([norm(t) for t in x]))
    (dx,) = torch.func.vjp(torch.vmap(norm), x)[1](x.square())
    expected = [torch.func.vjp(norm, t)[1](t.square())[0] for t in x]
    torch.testing.assert_close(dx, torch.stack(expected))
