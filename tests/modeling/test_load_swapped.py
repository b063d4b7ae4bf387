# SPDX-License-Identifier: Apache-2.0
"""No door brings vanilla norms where others were saved; the one that is named opens what no Auto class does."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, EncoderDecoderConfig, EncoderDecoderModel, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ibnorm_hf import IBNormLlamaForCausalLM, load_swapped, replace_norms, restore_norms
from ibnorm_hf.modeling.recognize import iter_norms

from ..foreign import FOREIGN
from ..hosts import HOSTS, shake
from ..hub.models import heads, sizes
from .test_identity import HOSTS as HOST_OF
from .test_identity import NAMES, ONE_EACH, foreign, output, vanilla


def same(a, b):
    """Same class, norms, weights and outputs."""
    assert type(a) is type(b)
    assert [(p, str(m)) for p, m in iter_norms(a)] == [(p, str(m)) for p, m in iter_norms(b)]
    theirs = b.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items()) and len(a.state_dict()) == len(theirs)
    assert torch.equal(output(a.eval(), b), output(b.eval(), b))


@pytest.mark.parametrize("head", ONE_EACH, ids=NAMES)
def test_a_vanilla_config_opens_no_swapped_model(head, tmp_path):
    """Given a config, the host's class reads no config.json that would stop it."""
    config, auto, cls = head
    model, host = vanilla(config, cls), HOST_OF[cls]
    own = copy.deepcopy(model.config)
    own.save_pretrained(tmp_path / "config")
    model.save_pretrained(tmp_path / "vanilla")
    replace_norms(model, "ibnorm-t")
    model.save_pretrained(tmp_path / "ours")
    sentence = rf"holds a {config.model_type}, whose norms a \w+ has not; load it by an Auto class"
    for door, given in [(auto, own), (AutoModel, own), (host, own), (host, str(tmp_path / "config")), (host, None)]:
        with pytest.raises(ValueError, match=sentence):
            door.from_pretrained(tmp_path / "ours", **({} if given is None else {"config": given}))
    (tmp_path / "adapter").mkdir()
    adapter = {"base_model_name_or_path": str(tmp_path / "ours"), "peft_type": "LORA"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ValueError, match=sentence):
        host.from_pretrained(tmp_path / "adapter", config=own)
    for door in (auto, cls):  # with a config that says the norms, both do
        assert type(door.from_pretrained(tmp_path / "ours", config=copy.deepcopy(model.config))) is cls
    with pytest.raises(ValueError, match=rf"{cls.__name__} takes the norms that its config says, and a \w+ says none"):
        cls.from_pretrained(tmp_path / "ours", config=own)
    assert type(auto.from_pretrained(tmp_path / "vanilla", config=own)) is host


def test_a_folder_without_a_config_and_a_model_without_a_folder_are_the_hosts_affair(tmp_path):
    model = foreign()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    assert type(type(model).from_pretrained(tmp_path, config=model.config)) is type(model)
    assert type(type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())) is type(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_unknown_host_comes_back_by_the_door(dtype, tmp_path):
    model = shake(foreign()).to(dtype)
    replace_norms(model, "ibnorm-s", norm_lambda=2, norm_scope=["pre-attention", "final"], norm_depth_scale="sqrt")
    model.save_pretrained(tmp_path / "one", max_shard_size="8KB")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 1
    again = load_swapped(tmp_path / "one")
    assert again.dtype == dtype and not again.training and again.config.model_type == model.config.model_type
    same(again, model)
    again.save_pretrained(tmp_path / "two")  # and so on
    same(load_swapped(str(tmp_path / "two")), model)
    same(type(model).from_pretrained(tmp_path / "two"), model)
    assert load_swapped(tmp_path / "two", dtype=torch.float64).dtype == torch.float64
    assert load_swapped(tmp_path / "two", device_map="cpu", output_loading_info=True)[1]["missing_keys"] == set()


def test_norms_of_several_kinds_come_back(tmp_path):
    model = vanilla(*next((c, cls) for c, _, cls in heads() if cls is IBNormLlamaForCausalLM))
    first = replace_norms(model, "ibnorm-l", norm_scope="final", norm_lambda=3, norm_bias=True)
    replace_norms(model, "dyt", norm_scope="pre-mlp")
    replace_norms(model, "ibnorm-clip", norm_scope="pre-attention", norm_lambda_learned=True)
    shake(model).save_pretrained(tmp_path / "all")
    same(load_swapped(tmp_path / "all"), model)
    restore_norms(model, first)
    model.save_pretrained(tmp_path / "rest")
    same(load_swapped(tmp_path / "rest"), model)


def test_a_factor_on_the_embeddings_comes_back(tmp_path):
    model = AutoModelForCausalLM.from_config(HOSTS["llama"].config(**sizes("ibnorm_llama"), norm_type="dyt")).eval()
    assert model.config.norm_embedding_scale
    replace_norms(model, "rmsnorm", norm_scope="final")
    with torch.no_grad():
        model.get_input_embeddings().embed_scale.fill_(3.0)
    model.save_pretrained(tmp_path)
    same(load_swapped(tmp_path), model)


def test_a_composite_comes_back(tmp_path):
    bert = CONFIG_MAPPING["bert"](**dict(sizes("ibnorm_llama"), num_hidden_layers=1))
    both = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(bert, copy.deepcopy(bert))).eval()
    replace_norms(both, "ibnorm-l")
    both.save_pretrained(tmp_path)
    again = load_swapped(tmp_path)
    assert [(p, str(m)) for p, m in iter_norms(again)] == [(p, str(m)) for p, m in iter_norms(both)]
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(ids, decoder_input_ids=ids)[0], both(ids, decoder_input_ids=ids)[0])


class Mine(LlamaForCausalLM):
    pass


def test_a_class_of_its_user_is_given(tmp_path):
    model = Mine(LlamaForCausalLM.config_class(**sizes("ibnorm_llama"))).eval()
    replace_norms(model, "ibnorm-l")
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="holds a IBNormMine, whose host is no class of transformers; give it as model"
    ):
        load_swapped(tmp_path)
    same(load_swapped(tmp_path, model_class=Mine), model)
    with pytest.raises(ValueError, match="holds a ibnorm_swapped_llama, which is no GPT2LMHeadModel"):
        load_swapped(tmp_path, model_class=HOST_OF[HOSTS["gpt2"].heads[AutoModelForCausalLM]])


def test_what_the_door_does_not_open(tmp_path):
    model = foreign()
    model.save_pretrained(tmp_path / "vanilla")
    with pytest.raises(ValueError, match=f"holds a {FOREIGN}, which is loaded by the Auto classes"):
        load_swapped(tmp_path / "vanilla")
    with pytest.raises(OSError):
        load_swapped(tmp_path / "nothing")
    replace_norms(model, "ibnorm-l")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "norm" in name)
    save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"disagree \(missing keys: {name}\)"):
        load_swapped(tmp_path)
    save_file(weights | {"more": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"disagree \(unexpected keys: more\)"):
        load_swapped(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    path = next(iter(stored["norm_replacements"]))
    for broken, sentence in (
        ({"elsewhere.norm": stored["norm_replacements"][path]}, "has no norm 'elsewhere.norm' that another one could"),
        ({path: {"norm_type": "ibnrm-l"}}, "Did you mean 'ibnorm-l'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(stored | {"norm_replacements": broken}))
        with pytest.raises(ValueError, match=sentence):
            load_swapped(tmp_path)
