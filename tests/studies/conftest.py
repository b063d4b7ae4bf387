# SPDX-License-Identifier: Apache-2.0
"""Runs of a second, many of them."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def collected_once():
    """Every run asks for a full collection; what a session has imported need not be walked each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
