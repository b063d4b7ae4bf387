# SPDX-License-Identifier: Apache-2.0
"""The modules behind ``create_norm``, each against an oracle of its own."""

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ibnorm_hf import DynamicTanh, IBNorm, NormalNorm, RMSNorm, create_norm, ib_norm, list_norms
from ibnorm_hf.modeling.norms import newton_exponent, yeo_johnson

from .checks import make_input

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("name", list_norms())
@pytest.mark.parametrize("affine, bias", [(True, True), (True, False), (False, True)])
def test_every_name_makes_a_norm(name, affine, bias):
    norm = create_norm(name.upper().replace("-", "_"), 24, norm_affine=affine, norm_bias=bias)
    parameters = {n for n, _ in norm.named_parameters()}
    assert parameters & {"weight", "bias"} == (
        {"weight", "bias"} if affine and bias else {"weight"} if affine else set()
    )
    for dtype in DTYPES:
        x = make_input(5, 24, dtype).requires_grad_()
        y = norm.to(dtype)(x)
        assert y.dtype == dtype and y.shape == x.shape and torch.isfinite(y).all()
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert torch.isfinite(dx).all() and dx.abs().max() > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rmsnorm_is_bit_equal_to_llamas(dtype):
    ours, llama = RMSNorm(192, 1e-6, norm_bias=False).to(dtype), LlamaRMSNorm(192, 1e-6).to(dtype)
    with torch.no_grad():
        ours.weight.copy_(make_input(1, 192, dtype)[0])
        llama.weight.copy_(ours.weight)
    x = make_input(5, 192, dtype)
    assert torch.equal(ours(x), llama(x))


def test_layernorm_is_torchs():
    assert type(create_norm("layernorm", 8)) is torch.nn.LayerNorm


def test_ibnorm_module_is_the_function():
    x = make_input(5, 24, torch.float32)
    norm = IBNorm(24, 1e-3, norm_type="ibnorm-s", norm_lambda=2, norm_order="standardize-first")
    y = ib_norm(x, norm_type="ibnorm-s", norm_lambda=2, norm_order="standardize-first", eps=1e-3)
    assert torch.equal(norm(x), y)
    norm.norm_lambda = 9.0  # annealing changes it between steps
    assert torch.equal(
        norm(x), ib_norm(x, norm_type="ibnorm-s", norm_lambda=9, norm_order="standardize-first", eps=1e-3)
    )


def test_dyt_is_its_formula():
    x = make_input(5, 24, torch.float32)
    norm = DynamicTanh(24, alpha=0.8)
    with torch.no_grad():
        norm.weight.fill_(2.0)
        norm.bias.fill_(-1.0)
    torch.testing.assert_close(norm(x), 2 * torch.tanh(0.8 * x) - 1)


def negative_log_likelihood(h, exponent):
    """Of a Gaussian after the Yeo-Johnson transform, per element: what the Newton step lowers."""
    y = yeo_johnson(h, exponent)
    jacobian = (exponent - 1) * (torch.sign(h) * torch.log1p(h.abs())).mean(-1, keepdim=True)
    return 0.5 * torch.log(y.var(-1, correction=0, keepdim=True)) - jacobian


def test_normalnorm_exponent_is_a_newton_step_on_the_likelihood():
    x = make_input(5, 256, torch.float64)
    h = F.layer_norm(x, (256,), eps=0)
    one = torch.ones(5, 1, dtype=torch.float64, requires_grad=True)
    loss = negative_log_likelihood(h, one)
    (slope,) = torch.autograd.grad(loss.sum(), one, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), one)
    expected = 1 - slope / (curvature + 1e-5**0.5)
    torch.testing.assert_close(newton_exponent(h, (-1,), 1e-5), expected.detach())
    assert (negative_log_likelihood(h, expected) < loss).all()


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.7, 1.0, 2.0, 3.1])
def test_yeo_johnson_values_and_gradient(exponent):
    scipy_stats = pytest.importorskip("scipy.stats")
    h = torch.linspace(-3, 3, 13, dtype=torch.float64)
    expected = torch.from_numpy(scipy_stats.yeojohnson(h.numpy(), lmbda=exponent))
    lam = torch.tensor(exponent, dtype=torch.float64)
    torch.testing.assert_close(yeo_johnson(h, lam), expected)
    assert torch.autograd.gradcheck(yeo_johnson, (h.requires_grad_(), lam + 0.01))
    (slope,) = torch.autograd.grad(yeo_johnson(h, lam)[6], h)
    assert slope[6].item() == pytest.approx(1.0)  # at h = 0


def test_normalnorm_noise_is_for_training_only_and_scaled():
    x = make_input(4000, 64, torch.float32)
    noisy, silent = NormalNorm(64), create_norm("normalnorm-noiseless", 64)
    assert torch.equal(noisy.eval()(x), silent.train()(x))
    torch.manual_seed(0)
    y = noisy.train()(x)
    torch.manual_seed(0)
    assert torch.equal(noisy(x), y)
    clean = silent(x)
    scale = (clean - clean.mean(-1, keepdim=True)).abs().mean(-1, keepdim=True)
    assert ((y - clean) / scale).std().item() == pytest.approx(1.0, abs=0.01)


def test_normalnorm_gradcheck():
    norm = create_norm("normalnorm-noiseless", 6).double()
    assert torch.autograd.gradcheck(norm, (make_input(3, 6, torch.float64).requires_grad_(),))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("layer_nrm", {}, r"Unknown norm_type 'layer_nrm'; known: bhyt, .*Did you mean 'layernorm'\?"),
        ("layernorm", {"norm_lambda": 4}, "norm_lambda=4 has no meaning for 'layernorm'"),
        ("dyt", {"norm_order": "standardize-first"}, "norm_order=standardize-first has no meaning for 'dyt'"),
        ("ibnorm-l", {"norm_lambda": -1}, "norm_lambda must be a finite number above 0, got -1"),
    ],
)
def test_errors_say_what_to_do(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_norm(name, 8, **options)
