# SPDX-License-Identifier: Apache-2.0
"""What a card says of a compression is true of it."""

import pytest
import torch

from ibnorm_hf.hub.norm_facts import norm_facts
from ibnorm_hf.modeling.compression import get_compression, list_compressions


@pytest.mark.parametrize("name", list_compressions())
def test_bounded_is_said_of_what_is_bounded_alone(name):
    bounded = get_compression(name).g(torch.tensor([1e12], dtype=torch.float64)).item() <= 10
    assert ("by a bounded function g" in norm_facts(name).text) == bounded
    assert ("has no bound and never expands" in norm_facts(name).text) != bounded
