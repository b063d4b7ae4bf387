# SPDX-License-Identifier: Apache-2.0
"""Whole tensors into a model, sharded or not: what is missing, unexpected or of another shape is an error."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from ibnorm_hf.training.loop.sharded import is_sharded, load_full_model

from ..hosts import CAUSAL

DAMAGE = {
    "missing": (lambda weights, name: weights.pop(name), ValueError, "lacks"),
    "unexpected": (lambda weights, name: weights.update(other=torch.zeros(2)), RuntimeError, "other"),
    "of another shape": (
        lambda weights, name: weights.update({name: weights[name][:-1]}),
        (RuntimeError, ValueError),
        "",
    ),
}


def make(tied):
    host = CAUSAL["llama"]
    return AutoModelForCausalLM.from_config(host.config(**host.sizes(), tie_word_embeddings=tied))


@pytest.fixture(params=["whole", "sharded"])
def place(request, tmp_path):
    """What to do with a model: leave it, or shard it over a group of one process."""
    if request.param == "whole":
        yield lambda model: model
        return
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
    try:
        yield lambda model: fully_shard(model, mesh=mesh)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
def test_what_was_saved_is_what_is_loaded(place, tied, tmp_path):
    saved = make(tied)
    saved.save_pretrained(tmp_path / "saved")
    model = place(make(tied))
    assert is_sharded(model) == distributed.is_initialized()
    load_full_model(model, tmp_path / "saved" / "model.safetensors")
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in model.state_dict().items()}
    assert whole and all(torch.equal(whole[name], p) for name, p in saved.state_dict().items())


@pytest.mark.parametrize("damage", DAMAGE)
def test_other_tensors_are_an_error(place, damage, tmp_path):
    change, error, words = DAMAGE[damage]
    make(False).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights, "model.norm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = place(make(False))
    with pytest.raises(error, match=words):
        load_full_model(model, tmp_path / "model.safetensors")
