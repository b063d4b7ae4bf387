# SPDX-License-Identifier: Apache-2.0
"""Rivals and options of norms, each against its formula written out, at its start and by its gradient."""

import math

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from ibnorm_hf import create_norm, list_norms
from ibnorm_hf.modeling.create import get_spec, spec_of
from ibnorm_hf.modeling.norms import TokenNorm
from ibnorm_hf.modeling.rivals import alpha_at
from ibnorm_hf.modeling.sites import Site, site_of
from ibnorm_hf.modeling.specs import SPECS
from ibnorm_hf.training.loop.decay import decay_groups

from .checks import make_input

LLAMA = {k: Site(k, 1, "llama", 512) for k in ("attention", "mlp", "final")}


def rms(x):
    return x.square().mean(-1, keepdim=True).add(1e-5).sqrt()


# name -> (how it stands in a model, what it computes at its start)
AT_START = {
    "bhyt": (None, lambda x: torch.tanh(0.2 * x / rms(x))),
    "derf": (LLAMA["attention"], torch.erf),
    "dyt": (LLAMA["mlp"], torch.tanh),
    "dyt-plain": (LLAMA["mlp"], lambda x: torch.tanh(0.5 * x)),
    "gatednorm": (None, lambda x: x / rms(x)),
    "rmsnorm-1p": (None, lambda x: x / rms(x)),
    "seednorm": (None, lambda x: x / rms(x)),
}


def test_every_rival_has_its_row():
    rivals = {
        name for name, spec in SPECS.items() if spec.classes.get("token", object).__module__ == alpha_at.__module__
    }
    assert set(AT_START) == rivals and len(rivals) > 5


@pytest.mark.parametrize("name", AT_START)
def test_value_at_the_start_and_gradient(name):
    site, expected = AT_START[name]
    x = make_input(5, 24, torch.float64)
    norm = create_norm(name, 24, site=site, dtype=torch.float64)
    torch.testing.assert_close(norm(x), expected(x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        for parameter in norm.parameters():  # away from the start, where some gradients vanish
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    small = create_norm(name, 4, dtype=torch.float64)
    small.load_state_dict(
        {n: norm.state_dict()[n].flatten()[: p.numel()].view_as(p) for n, p in small.state_dict().items()}
    )
    names, values = zip(*small.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(small, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (make_input(2, 4, torch.float64).requires_grad_(), *values))


def test_each_formula_away_from_its_start():
    x = make_input(5, 8, torch.float64)
    w, b = make_input(2, 8, torch.float64, seed=1)

    def value(name, **parameters):
        norm = create_norm(name, 8, dtype=torch.float64)
        norm.load_state_dict({"weight": w, "bias": b, **parameters})
        return norm(x)

    a, s = torch.tensor([0.7]).double(), torch.tensor([-0.2]).double()
    torch.testing.assert_close(value("dyt", alpha=a), w * torch.tanh(a * x) + b)
    torch.testing.assert_close(value("derf", alpha=a, shift=s), w * torch.erf(a * x + s) + b)
    torch.testing.assert_close(value("bhyt", lam=a), w * torch.tanh(0.07 * x / rms(x)) + b)
    torch.testing.assert_close(value("rmsnorm-1p"), (1 + w) * x / rms(x) + b)
    torch.testing.assert_close(
        value("seednorm", alpha=b, beta=w / 9), (w + b * torch.tanh(x @ w / 9)[:, None]) * x / rms(x) + b
    )
    down, up = make_input(16, 8, torch.float64, seed=2), make_input(8, 16, torch.float64, seed=3) / 9
    h = (1 + w) * x / rms(x)
    gate = torch.sigmoid(nn.functional.silu(h @ down.T) @ up.T)
    torch.testing.assert_close(value("gatednorm", down=down, up=up), 2 * h * gate + b)


def test_bhyt_is_ibnorm_t_standardize_first_at_lambda_5():
    x = make_input(7, 64, torch.float64)
    x = x - x.mean(-1, keepdim=True)  # up to centring
    ibnorm = create_norm("ibnorm-t", 64, norm_lambda=5, norm_order="standardize-first", dtype=torch.float64)
    bhyt = create_norm("bhyt", 64, dtype=torch.float64)
    assert (bhyt(x) - 0.2 * ibnorm(x)).abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rmsnorm_1p_is_bit_equal_to_gemmas(dtype):
    ours, gemma = create_norm("rmsnorm-1p", 48, eps=1e-6, norm_bias=False).to(dtype), GemmaRMSNorm(48, 1e-6).to(dtype)
    with torch.no_grad():
        gemma.weight.copy_(make_input(1, 48, dtype)[0])
        ours.weight.copy_(gemma.weight)
    x = make_input(5, 48, dtype)
    assert torch.equal(ours(x), gemma(x))


@pytest.mark.parametrize(
    "width, attention, elsewhere",
    [(512, 1.0, 1.0), (1024, 1.0, 1.0), (2048, 1.0, 0.5), (4096, 0.8, 0.2), (9999, 0.2, 0.05)],
)
def test_dyt_starts_alpha_by_width_and_site(width, attention, elsewhere):
    for kind, alpha in (("attention", attention), ("mlp", elsewhere), ("final", elsewhere)):
        site = Site(kind, 1, "llama", width)
        assert alpha_at(site) == {"alpha": alpha}
        assert create_norm("dyt", 8, site=site).alpha.item() == pytest.approx(alpha)
        assert create_norm("dyt-plain", 8, site=site).alpha.item() == 0.5
    assert create_norm("dyt", 8, site=Site("attention", 1, "vit", width)).alpha.item() == 0.5


@pytest.mark.parametrize(
    "path, siblings, kind, layer",
    [
        ("model.layers.3.input_layernorm", (), "attention", 4),
        ("model.layers.0.post_attention_layernorm", (), "mlp", 1),
        ("model.layers.0.post_attention_layernorm", ("pre_feedforward_layernorm",), "other", 1),
        ("model.layers.0.self_attn.q_norm", (), "other", 1),
        ("model.norm", (), "final", 0),
        ("transformer.h.11.ln_2", (), "mlp", 12),
        ("transformer.ln_f", (), "final", 0),
        ("vit.layernorm", (), "final", 0),
        ("bert.embeddings.LayerNorm", (), "other", 0),
    ],
)
def test_sites(path, siblings, kind, layer):
    site = site_of(path, frozenset(siblings))
    assert (site.kind, site.layer) == (kind, layer)


@pytest.mark.parametrize("name", list_norms())
def test_depth_scale_divides_by_the_root_of_the_layer(name):
    x = make_input(3, 8, torch.float32)
    site = Site("mlp", 4, "llama", 8)
    torch.manual_seed(0)
    plain = create_norm(name, 8, site=site).eval()
    torch.manual_seed(0)
    scaled = create_norm(name, 8, site=site, norm_depth_scale="sqrt").eval()
    torch.testing.assert_close(scaled(x), plain(x) / 2)
    assert spec_of(scaled) == spec_of(plain) == get_spec(name)
    final = create_norm(name, 8, site=Site("final", 0), norm_depth_scale="sqrt")
    assert type(final) is type(plain)


@pytest.mark.parametrize("area, shape", [("token", (6, 8)), ("channel", (2, 8, 3, 3)), ("batch", (2, 8, 3, 3))])
def test_a_learned_lambda_starts_as_the_fixed_one_and_has_a_gradient(area, shape):
    x = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fixed = create_norm("ibnorm-t", 8, norm_lambda=3, area=area, dtype=torch.float64)
    learned = create_norm("ibnorm-t", 8, norm_lambda=3, norm_lambda_learned=True, area=area, dtype=torch.float64)
    torch.testing.assert_close(learned(x), fixed(x))
    assert learned.norm_lambda == pytest.approx(3) and "learned from 3" in repr(learned)

    def run(log_lambda):
        return torch.func.functional_call(learned, {"log_lambda": log_lambda}, (x,))

    assert torch.autograd.gradcheck(run, (learned.log_lambda.detach().clone().requires_grad_(),))
    learned.norm_lambda = 9
    assert learned.log_lambda.item() == pytest.approx(math.log(9))
    fixed.norm_lambda = 9
    fixed.load_state_dict(learned.state_dict(), strict=False)  # its running statistics have seen more batches
    torch.testing.assert_close(learned.eval()(x), fixed.eval()(x))


def test_a_lambda_outside_its_domain_is_refused_as_an_attribute_too():
    for area in ("token", "batch"):
        norm = create_norm("ibnorm-l", 8, area=area)
        for value in (0, -4, math.nan, math.inf, "4"):
            with pytest.raises(ValueError, match="norm_lambda must be a finite number above 0"):
                norm.norm_lambda = value
        assert norm.norm_lambda == 4


@pytest.mark.parametrize("name", list_norms())
def test_start_values_come_back_and_what_was_loaded_stays(name):
    norm = create_norm(name, 8, site=LLAMA["attention"])
    if not isinstance(norm, TokenNorm):
        return
    start = {n: p.clone() for n, p in norm.named_parameters()}
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.fill_(7)
    norm.weight._is_hf_initialized = True
    norm.reset_parameters()
    assert (norm.weight == 7).all()
    for n, p in norm.named_parameters():
        if n == "down":
            assert 0.01 < p.std() < 0.03  # noise
        elif n != "weight":
            assert torch.equal(p, start[n]), n


def test_decay_touches_what_the_publication_decays():
    norms = {name.replace("-", "_"): create_norm(name, 8) for name in list_norms()}
    decayed = set(decay_groups(nn.ModuleDict(norms)).decay)
    assert decayed == {"rmsnorm_1p.weight", "gatednorm.weight", "gatednorm.down", "gatednorm.up"} | {
        "seednorm.alpha",
        "seednorm.beta",
    }


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("dyt", {"norm_lambda_learned": True}, "norm_lambda_learned=True has no meaning for 'dyt'"),
        ("dyt", {"norm_depth_scale": "sqr"}, "Unknown norm_depth_scale 'sqr'; known: sqrt. Did you mean 'sqrt'?"),
        ("ibnorm-l", {"norm_depth_scale": "sqrt", "area": "batch"}, "is for norms in front of attention and MLP"),
    ],
)
def test_errors_say_what_to_do(name, options, message):
    with pytest.raises(ValueError) as error:
        create_norm(name, 8, **options)
    assert message in str(error.value)
