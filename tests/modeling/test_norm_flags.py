# SPDX-License-Identifier: Apache-2.0
"""Flags that need to know where a norm stands, or more than the norms: in the models that carry them."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ibnorm_hf import list_norms, replace_norms, restore_norms
from ibnorm_hf.modeling.recognize import iter_norms, norm_name
from ibnorm_hf.modeling.scaled_embedding import ScaledEmbedding
from ibnorm_hf.modeling.specs import SPECS
from ibnorm_hf.pretrained import registered_config

from ..hosts import CAUSAL

SMALL = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = SMALL | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(20).view(2, 10)


def make(kind="llama", **flags):
    host = CAUSAL[kind]
    sizes = LLAMA if kind == "llama" else host.sizes()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(host.model_type, **sizes, **flags)).eval()


def without(folder, word):
    """Take the parameters whose names end with a word out of a saved model; how many there were."""
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.endswith(word)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return len(tensors) - len(kept)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if "llama" in spec.embedding_scale])
def test_llama_gets_dyt_and_derf_as_published(name, tmp_path):
    model = make(norm_type=name)
    assert model.config.norm_embedding_scale is True
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, ScaledEmbedding) and embedding.embed_scale.item() == 4  # the root of 16
    torch.testing.assert_close(embedding(IDS), 4 * embedding.weight[IDS])
    assert {m[0].alpha.item() for _, m in iter_norms(model)} == {1.0}  # a width up to 1024
    model(IDS, labels=IDS).loss.backward()
    assert embedding.embed_scale.grad.abs() > 0
    with torch.no_grad():
        embedding.embed_scale.fill_(3)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    again.resize_token_embeddings(70)
    assert torch.equal(again(IDS).logits[..., :64], model(IDS).logits)
    assert without(tmp_path, ".embed_scale") == 1 and without(tmp_path, ".alpha") == 5
    started = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert started.get_input_embeddings().embed_scale.item() == 4
    assert {m[0].alpha.item() for _, m in iter_norms(started)} == {1.0}


def test_lora_on_scaled_embeddings_merges_into_what_it_computed():
    model = make(norm_type="dyt")
    options = {"target_modules": ["embed_tokens", "q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    before = model(IDS).logits
    tuned = get_peft_model(model, LoraConfig(**options)).eval()
    adapted = tuned(IDS).logits
    assert not torch.allclose(adapted, before, atol=1e-2)
    torch.testing.assert_close(tuned.merge_and_unload()(IDS).logits, adapted, rtol=1e-4, atol=1e-5)


def test_the_first_norm_of_llama_sees_more_than_its_tiny_embeddings():
    out = {}
    for name in ("dyt", "dyt-plain"):
        model = make(norm_type=name)
        out[name] = model.model.layers[0].input_layernorm(model.get_input_embeddings()(IDS)).square().mean().sqrt()
    # At a width of 16: tanh(4 x) against tanh(x / 2), x of std 0.02.
    assert out["dyt"].item() == pytest.approx(8 * out["dyt-plain"].item(), rel=0.02)


def test_other_hosts_and_the_plain_swap_keep_their_embeddings():
    for kind in CAUSAL.keys() - {"llama"}:
        assert make(kind, norm_type="dyt").config.norm_embedding_scale is False
    plain = make(norm_type="dyt-plain")
    assert plain.config.norm_embedding_scale is False and not isinstance(plain.get_input_embeddings(), ScaledEmbedding)
    assert {m[0].alpha.item() for _, m in iter_norms(plain)} == {0.5}
    assert {norm_name(m[0]) for _, m in iter_norms(plain)} == {"dyt-plain"}
    assert registered_config(LlamaConfig(**LLAMA), norm_type="dyt").norm_embedding_scale is False  # trained without
    with pytest.raises(ValueError, match="norm_embedding_scale is for token embeddings"):
        AutoConfig.for_model("ibnorm_vit", norm_embedding_scale=True)


def test_dyt_saved_before_embeddings_could_be_scaled_computes_what_it_did(tmp_path):
    old = make(norm_type="dyt-plain")
    old.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["norm_type"] = "dyt"
    del config["norm_embedding_scale"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and again.config.norm_type == "dyt-plain"
    assert torch.equal(again.eval()(IDS).logits, old(IDS).logits)


# Norms that the second layer has in front of attention and of the MLP; OLMo 2 norms what they give.
IN_FRONT = {"olmo2": 0}


@pytest.mark.parametrize(
    "kind, name", sorted({(kind, "ibnorm-l") for kind in CAUSAL} | {("llama", name) for name in list_norms()})
)
def test_depth_scale_in_front_of_attention_and_mlp(kind, name, tmp_path):
    model = make(kind, norm_type=name, norm_depth_scale="sqrt")
    scales = {path: getattr(m[0], "output_scale", 1.0) for path, m in iter_norms(model)}
    scaled = {path: scale for path, scale in scales.items() if scale != 1}
    assert len(scaled) == IN_FRONT.get(kind, 2) and all(".1." in path for path in scaled), scales
    assert list(scaled.values()) == pytest.approx([0.5**0.5] * len(scaled))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert torch.equal(make(kind, norm_type=name)(IDS).logits, model(IDS).logits) == (not scaled)


def test_a_scaled_norm_stays_scaled_when_it_is_swapped():
    model = make(norm_type="rmsnorm", norm_depth_scale="sqrt")
    before = model(IDS).logits
    replace_norms(model, "layernorm")
    replace_norms(model, "ibnorm-l", norm_lambda=1e5)
    assert [m[0].output_scale for _, m in iter_norms(model)][2] == 0.5**0.5
    replace_norms(model, "rmsnorm")
    assert torch.equal(model(IDS).logits, before)


def test_a_learned_lambda_trains_and_travels(tmp_path):
    model = make(norm_type="ibnorm-t", norm_lambda=2, norm_lambda_learned=True).train()
    start = make(norm_type="ibnorm-t", norm_lambda=2)
    torch.testing.assert_close(model(IDS).logits, start(IDS).logits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    lambdas = [m[0].norm_lambda for _, m in iter_norms(model)]
    assert all(value != 2 for value in lambdas)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [m[0].norm_lambda for _, m in iter_norms(again)] == lambdas
    assert without(tmp_path, ".log_lambda") == 5
    started = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [m[0].log_lambda.item() for _, m in iter_norms(started)] == pytest.approx([math.log(2)] * 5)


def test_a_gain_written_as_1_plus_w_is_carried_as_the_gain():
    model = make(norm_type="rmsnorm")
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(0.5, 2, 16))
    before = model(IDS).logits
    report = replace_norms(model, "rmsnorm-1p")
    torch.testing.assert_close(model.model.norm.weight, torch.linspace(-0.5, 1, 16))
    torch.testing.assert_close(model(IDS).logits, before)
    with torch.no_grad():
        model.model.norm.weight.fill_(0)
    restore_norms(model, report)
    assert (model.model.norm.weight == 1).all()
    replace_norms(model, "gatednorm")
    replace_norms(model, "ibnorm-l")
    assert (model.model.norm.weight == 1).all()


@pytest.mark.parametrize("where", [{"dtype": torch.bfloat16}, {"device": "meta"}], ids=str)
def test_a_norm_without_parameters_gives_way_to_one_of_the_models_dtype_and_device(where):
    model = make(norm_type="layernorm", norm_affine=False).to(**where)
    assert not any(m[0].state_dict() for _, m in iter_norms(model))
    replace_norms(model, "derf")
    for _, modules in iter_norms(model):
        for p in modules[0].parameters():
            assert p.dtype == where.get("dtype", torch.float32) and p.device.type == where.get("device", "cpu")
            assert p.requires_grad


def test_surgery_knows_the_sites_of_a_vanilla_model():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"hidden_size": 32}))
    model.model.norm.weight.data.fill_(2)
    replace_norms(model, "ibnorm-l", norm_lambda_learned=True, norm_depth_scale="sqrt")
    assert [m[0].output_scale for _, m in iter_norms(model)] == pytest.approx([1, 1, 0.5**0.5, 0.5**0.5, 1])
    assert all(m[0].log_lambda is not None for _, m in iter_norms(model)) and model.model.norm.weight[0] == 2
    replace_norms(model, "dyt")
    assert {m[0].alpha.item() for _, m in iter_norms(model)} == {1.0}
