# SPDX-License-Identifier: Apache-2.0
"""Every norm of the registry, over every area, on inputs and under defaults that are seldom tried."""

import pytest
import torch

from ibnorm_hf import create_norm, list_norms, register_compression
from ibnorm_hf.modeling import compression
from ibnorm_hf.modeling.batch_functional import batch_ib_norm, batch_ib_norm_reference
from ibnorm_hf.modeling.compression import get_compression

CASES = [(area, name) for area in ("token", "channel", "batch") for name in list_norms(area)]
SHAPE = {"token": (2, 3, 8), "channel": (2, 8, 3, 3), "batch": (2, 8, 3, 3)}
EMPTY = {"token": (0, 3, 8), "channel": (0, 8, 3, 3), "batch": (0, 8, 3, 3)}


def values(area, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(SHAPE[area], generator=generator, dtype=torch.float64, device="cpu")).to(dtype)


def run(norm, x, cotangent):
    """Output and all gradients, by name; noise starts from one seed."""
    torch.manual_seed(0)
    x = x.detach().requires_grad_()
    y = norm(x)
    names, parameters = zip(("x", x), *norm.named_parameters(), strict=True)
    return {"y": y.detach()} | dict(zip(names, torch.autograd.grad(y, parameters, cotangent), strict=True))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("area, name", CASES)
def test_the_default_dtype_changes_nothing_but_what_is_made_without_one(area, name, default):
    x, cotangent = values(area), values(area).flip(0)
    torch.manual_seed(0)
    norm = create_norm(name, 8, area=area, dtype=torch.float32)
    state = {k: v.clone() for k, v in norm.state_dict().items()}
    expected = run(norm, x, cotangent)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        norm.load_state_dict(state)
        found = run(norm, x, cotangent)
        made = create_norm(name, 8, area=area)
    finally:
        torch.set_default_dtype(previous)
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert {t.dtype for t in made.state_dict().values()} - {torch.long} <= {default}


@pytest.mark.parametrize("area, name", CASES)
def test_meta_is_a_device_like_any_other(area, name):
    with torch.device("meta"):
        norm = create_norm(name, 8, area=area)
    assert all(t.is_meta for t in norm.state_dict().values()) and repr(norm)
    y = norm(values(area).to("meta"))
    assert y.is_meta and y.shape == SHAPE[area]
    with torch.device("meta"):  # a norm that has its device already does not take the default one
        x = values(area)
        norm = create_norm(name, 8, area=area, device="cpu")
        assert run(norm, x, x.flip(0))["y"].device.type == "cpu"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("area, name", CASES)
def test_a_batch_of_nothing_gives_nothing_and_moves_nothing(area, name, training):
    norm = create_norm(name, 8, area=area).train(training)
    before = {k: v.clone() for k, v in norm.named_buffers() if k != "num_batches_tracked"}
    x = torch.zeros(EMPTY[area], requires_grad=True)
    y = norm(x)
    assert y.shape == x.shape and y.dtype == x.dtype
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and (p.grad == 0).all() for n, p in norm.named_parameters())
    assert all(torch.equal(v, before[k]) for k, v in norm.named_buffers() if k in before)


@pytest.mark.parametrize("area, name", CASES)
def test_memory_layout_changes_nothing(area, name):
    x, cotangent = values(area, torch.float64), values(area, torch.float64).flip(0)
    torch.manual_seed(0)
    norm = create_norm(name, 8, area=area, dtype=torch.float64)
    state = {k: v.clone() for k, v in norm.state_dict().items()}
    expected = run(norm, x, cotangent)
    layouts = [torch.stack([x, x], -1)[..., 0], x.transpose(0, -1).contiguous().transpose(0, -1)]
    layouts += [x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else []
    for laid_out in layouts:
        norm.load_state_dict(state)
        assert not laid_out.is_contiguous()
        found = run(norm, laid_out, cotangent)
        if name != "normalnorm":  # its noise falls on elements in the order of memory
            torch.testing.assert_close(found, expected)


def test_vmap_over_the_batch_area():
    x = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.linspace(0.5, 2, 4).double(), torch.linspace(-1, 1, 4).double()
    options = (get_compression("ibnorm-l"), 2.0, 1e-5)

    def loss(norm):
        return lambda x, weight: (norm(x, weight, bias, *options)[0] * torch.arange(72.0).view_as(x)).sum()

    found = torch.func.vmap(torch.func.grad(loss(batch_ib_norm), (0, 1)), (0, None))(x, weight)
    expected = [torch.func.grad(loss(batch_ib_norm_reference), (0, 1))(part, weight) for part in x]
    for f, e in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(f, torch.stack(e))


def test_a_compression_can_be_registered_under_any_default(monkeypatch):
    monkeypatch.setattr(compression, "_REGISTRY", dict(compression._REGISTRY))
    with torch.device("meta"):
        register_compression("my-atan", torch.atan, lambda u, s: 1 / (1 + u * u))
    assert "my-atan" in list_norms()
