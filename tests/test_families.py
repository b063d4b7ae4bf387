# SPDX-License-Identifier: Apache-2.0
"""Whatever family the registration finds is trained by a recipe, and held to the peer suite."""

from .hosts import HOSTS, recipes
from .peer.suite.architectures import ARCHITECTURES

# Family -> why no recipe trains it.
NO_RECIPE: dict[str, str] = {}


def test_every_family_has_a_recipe():
    assert {name for name, host in HOSTS.items() if not recipes({name: host})} == set(NO_RECIPE)


def test_every_family_has_a_row_of_the_peer_suite():
    assert set(ARCHITECTURES) == set(HOSTS)
