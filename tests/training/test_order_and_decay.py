# SPDX-License-Identifier: Apache-2.0
"""The two decisions that make arms of an experiment comparable: sample order and weight decay."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch import nn
from torch.utils.data import BatchSampler
from transformers import AutoModelForCausalLM, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from ibnorm_hf.modeling.create import get_spec, list_norms
from ibnorm_hf.training.loop.decay import decay_groups
from ibnorm_hf.training.loop.order import SampleOrder

from ..hosts import CAUSAL


def test_order_is_permutations_in_a_row():
    order = SampleOrder(10, seed=1, steps=7, batch=4)
    ids = list(order)
    assert len(ids) == len(order) == 28
    assert sorted(ids[:10]) == sorted(ids[10:20]) == list(range(10))
    assert ids[:10] != ids[10:20]
    assert ids == [i for step in range(1, 8) for i in order.ids(step)]


def test_order_depends_on_the_seed_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = list(SampleOrder(50, seed=3, steps=9, batch=10))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    # Another split of the same 10 samples a step, and another length, begin with the same samples.
    assert list(SampleOrder(50, seed=3, steps=18, batch=5)) == first
    assert list(SampleOrder(50, seed=3, steps=12, batch=10))[:90] == first
    assert list(SampleOrder(50, seed=4, steps=9, batch=10)) != first


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_processes_share_out_the_same_steps(micro: int):
    order = SampleOrder(11, seed=0, steps=5, batch=8)
    shards = [
        list(BatchSamplerShard(BatchSampler(order, micro, drop_last=False), num_processes=2, process_index=rank))
        for rank in (0, 1)
    ]
    per_step = 8 // (2 * micro)
    for step in range(5):
        seen = [i for shard in shards for batch in shard[step * per_step : (step + 1) * per_step] for i in batch]
        assert sorted(seen) == sorted(order.ids(step + 1))


def test_ids_digest_covers_a_range():
    order = SampleOrder(10, seed=1, steps=6, batch=4)
    assert list(order.range(1, 3)) == list(SampleOrder(10, seed=1, steps=99, batch=4).range(1, 3))
    assert list(order.range(2, 3)) == order.ids(2) + order.ids(3)


def causal_lm(kind: str, **flags) -> nn.Module:
    return AutoModelForCausalLM.from_config(CAUSAL[kind].config(**CAUSAL[kind].sizes(), **flags))


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_norm_gets_the_same_decayed_parameters(kind: str):
    groups = {norm: decay_groups(causal_lm(kind, norm_type=norm)) for norm in list_norms()}
    for norm, group in groups.items():
        in_norms = [name for name in group.decay if "norm" in name or ".ln_" in name]
        # What a norm's publication decays, and nothing else of it.
        assert {name.rpartition(".")[2] for name in in_norms} == set(get_spec(norm).decayed), norm
        assert [name for name in group.decay if name not in in_norms] == groups["layernorm"].decay, norm
        assert not any(name.endswith("bias") for name in group.decay)
        assert all("norm" in name or "ln_" in name or name.endswith(("bias", "embed_scale")) for name in group.no_decay)


def test_gpt2_groups_by_name():
    group = decay_groups(causal_lm("gpt2", norm_type="ibnorm-l"))
    assert "transformer.h.0.attn.c_attn.weight" in group.decay  # a Conv1D
    assert "transformer.wpe.weight" in group.decay
    assert "transformer.h.0.ln_1.weight" in group.no_decay
    assert "transformer.h.0.mlp.c_fc.bias" in group.no_decay
    assert group.decay_classes.keys() == {"Embedding.weight", "Conv1D.weight"}


def test_vision_models():
    vit = decay_groups(
        ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    )
    assert any("patch_embeddings" in n and n.endswith("weight") for n in vit.decay)
    assert any("layernorm" in n for n in vit.no_decay) and any("cls_token" in n for n in vit.no_decay)
    resnet = decay_groups(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])))
    assert all("convolution" in n for n in resnet.decay) and resnet.decay
    assert all("normalization" in n for n in resnet.no_decay) and resnet.no_decay


def test_frozen_parameters_are_in_no_group():
    model = causal_lm("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    group = decay_groups(model)
    assert "model.embed_tokens.weight" not in group.decay + group.no_decay
