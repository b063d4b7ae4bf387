# SPDX-License-Identifier: Apache-2.0
"""Each compression is odd, monotone and non-expansive, with the derivative it claims."""

import math

import pytest
import torch

from ibnorm_hf import create_norm, list_norms, register_compression
from ibnorm_hf.modeling import compression as module
from ibnorm_hf.modeling.compression import _check_compression, get_compression, list_compressions


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(module, "_REGISTRY", dict(module._REGISTRY))


@pytest.mark.parametrize("name", list_compressions())
def test_built_in_compressions_hold_what_the_registry_demands(name):
    entry = get_compression(name)
    _check_compression(name, entry.g, entry.dg)
    zero = torch.zeros(1)
    assert entry.g(zero).item() == 0 and entry.dg(zero, zero).item() == 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("ibnorm-l", math.log(3)),
        ("ibnorm-t", math.tanh(2)),
        ("ibnorm-s", 2 / 3),
        ("ibnorm-sqrt", 2 * (math.sqrt(3) - 1)),
        ("ibnorm-clip", 1.0),
    ],
)
def test_values_by_hand(name, value):
    u = torch.tensor([2.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(get_compression(name).g(u), torch.tensor([value, -value], dtype=torch.float64))


def test_default_lambdas():
    assert {n: get_compression(n).default_lambda for n in list_compressions()} == {
        "ibnorm-l": 4,
        "ibnorm-t": 4,
        "ibnorm-s": 3,
        "ibnorm-sqrt": 3,
        "ibnorm-clip": 4,
    }


def test_a_registered_compression_works_everywhere():
    register_compression("My_Arctan", torch.atan, lambda u, s: 1 / (1 + u * u), default_lambda=2)
    assert "my-arctan" in list_norms()
    norm = create_norm("my-ARCTAN", 8)
    assert norm.norm_lambda == 2
    with pytest.raises(ValueError, match="exists already"):
        register_compression("my-arctan", torch.atan, lambda u, s: 1 / (1 + u * u))


@pytest.mark.parametrize(
    "g, dg, broken",
    [
        (torch.sigmoid, lambda u, s: s * (1 - s), "odd"),
        (torch.sin, lambda u, s: torch.cos(u), "monotone"),
        (lambda u: 2 * u, lambda u, s: torch.full_like(u, 2.0), "non-expansive"),
        (torch.tanh, lambda u, s: 1 - s, "dg the derivative of g"),
        (torch.sinh, lambda u, s: torch.cosh(u), "finite"),
    ],
)
def test_a_wrong_compression_is_refused(g, dg, broken):
    with pytest.raises(ValueError, match=rf"cannot be registered; not so: .*{broken}"):
        register_compression("wrong", g, dg)
    assert "wrong" not in list_norms()


@pytest.mark.parametrize(
    "name, default_lambda, message",
    [
        ("layernorm", 4, "exists already"),
        ("my name/../", 4, "is no name"),
        ("fine", -4, "default_lambda must be a finite number above 0"),
    ],
)
def test_a_name_or_lambda_that_could_not_work_is_refused(name, default_lambda, message):
    with pytest.raises(ValueError, match=message):
        register_compression(name, torch.atan, lambda u, s: 1 / (1 + u * u), default_lambda=default_lambda)
