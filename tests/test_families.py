# SPDX-License-Identifier: Apache-2.0
"""Whatever family the registration finds is trained by a recipe, and held to the peer suite."""

from .hosts import CAUSAL, HOSTS, TEXT, recipes
from .peer.suite.architectures import ARCHITECTURES

# Encoders fill masks, and there is no such objective in training.
NO_RECIPE = set(TEXT) - set(CAUSAL)


def test_every_family_has_a_recipe():
    assert {name for name, host in HOSTS.items() if not recipes({name: host})} == NO_RECIPE


def test_every_family_has_a_row_of_the_peer_suite():
    assert set(ARCHITECTURES) == set(HOSTS)
