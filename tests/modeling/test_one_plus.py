# SPDX-License-Identifier: Apache-2.0
"""Hosts whose norms write their gain as 1 + w: converted with equal logits both ways, never read as if it were w."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen3NextConfig

from ibnorm_hf import IBNormLlamaForCausalLM, replace_norms, restore_norms
from ibnorm_hf.modeling.recognize import family_of, iter_norms, norm_name
from ibnorm_hf.modeling.specs import SPECS

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "gemma": GemmaConfig(**SIZES),
    "qwen3-next": Qwen3NextConfig(
        **SIZES,
        **{"layer_types": ["full_attention"] * 2, "num_experts": 2, "num_experts_per_tok": 1},
        **{"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    ),
}
IDS = torch.arange(20).view(2, 10)


def make(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for _, modules in iter_norms(model):
            modules[0].weight.normal_(std=0.3)
    return model.to(dtype)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_logits_both_ways(name):
    model = make(name)
    assert {family_of(modules[0]) for _, modules in iter_norms(model)} == {"rmsnorm-1p"}
    before, norm = logits(model), model.model.norm.weight
    report = replace_norms(model, "rmsnorm-1p")
    assert torch.equal(logits(model), before) and model.model.norm.weight is norm
    assert all(r.change.endswith("same function") for r in report.replacements)
    second = replace_norms(model, "rmsnorm")
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.model.norm.weight, 1 + norm)
    third = replace_norms(model, "rmsnorm-1p")
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    for done in (third, second, report):
        restore_norms(model, done)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    assert type(model.model.norm).__name__.endswith("RMSNorm") and norm_name(model.model.norm) is None


def test_a_host_gets_gains_and_gives_them_back():
    model = make("gemma")
    weights = [modules[0].weight.detach().clone() for _, modules in iter_norms(model)]
    report = replace_norms(model, "ibnorm-l")
    for weight, (_, modules) in zip(weights, iter_norms(model), strict=True):
        torch.testing.assert_close(modules[0].weight, 1 + weight)
        modules[0].weight.data.fill_(3)
    restore_norms(model, report)
    assert all((modules[0].weight == 2).all() for _, modules in iter_norms(model))
    fresh = AutoModelForCausalLM.from_config(CONFIGS["gemma"])
    replace_norms(fresh, "layernorm")
    assert (fresh.model.norm.weight == 1).all()


def test_a_gain_in_bfloat16_is_rounded_once():
    model = make("gemma", torch.bfloat16)
    weight = model.model.norm.weight.detach().clone()
    replace_norms(model, "rmsnorm")
    assert torch.equal(model.model.norm.weight, (1 + weight.float()).bfloat16())
    assert not torch.equal(model.model.norm.weight, weight)


ONE_PLUS = [name for name, spec in SPECS.items() if getattr(spec.classes.get("token"), "gain_offset", 0) == 1]


def test_there_are_norms_that_write_their_gain_as_1_plus_w():
    assert {"rmsnorm-1p", "gatednorm"} <= set(ONE_PLUS)


@pytest.mark.parametrize("name", ONE_PLUS)
def test_weights_of_a_host_are_not_read_as_what_they_are_not(name, tmp_path):
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "vanilla")
    with pytest.raises(ValueError, match=rf"holds a llama, whose norms write their gain as w and {name} as 1 \+ w"):
        IBNormLlamaForCausalLM.from_pretrained(tmp_path / "vanilla", norm_type=name)
    model = IBNormLlamaForCausalLM.from_pretrained(tmp_path / "vanilla", norm_type="rmsnorm")
    replace_norms(model, name)
    assert (model.model.norm.weight == 0).all()
    model.save_pretrained(tmp_path / "ours")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and (again.model.norm.weight == 0).all()
