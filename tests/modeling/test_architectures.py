# SPDX-License-Identifier: Apache-2.0
"""What replace_norms does to the architectures of transformers: the table of all, and a sample of them tried anew."""

import collections
import random

import pytest
import transformers

from . import architectures
from .architectures import recorded, tried

ROWS = recorded()
RUNNING = [name for name, row in ROWS.items() if not row["kind"].startswith("not ")]


def test_no_architecture_computes_something_else_and_the_table_does_not_shrink():
    count = collections.Counter(row["kind"] for row in ROWS.values())
    assert count["different"] == count["error"] == 0 and sum(count.values()) >= 600
    assert count["all"] >= 280 and count["all"] + count["some"] >= 340
    for row in ROWS.values():
        if row["kind"] in ("some", "refused"):
            assert "looks like a norm" in row["why"] and int(row["kept"]) > 0, row
        assert row["kind"] != "nothing" or row["why"].endswith("has no norm to replace."), row


@pytest.mark.parametrize("model_type", sorted(random.Random(17).sample(RUNNING, 60)))
def test_a_sample_of_the_table(model_type):
    found, row = tried(model_type), ROWS[model_type]
    if transformers.__version__ == row["transformers"]:
        assert (found.kind, str(found.swapped), str(found.kept)) == (row["kind"], row["swapped"], row["kept"]), found
    else:
        assert found.kind not in ("different", "error"), found


def test_another_norm_in_their_place_is_noticed(monkeypatch):
    real = architectures.replace_norms
    monkeypatch.setattr(architectures, "replace_norms", lambda model, _, **more: real(model, "layernorm", **more))
    assert tried("llama").kind == "different" and tried("gpt2").kind == "all"
