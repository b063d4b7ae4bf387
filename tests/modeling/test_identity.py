# SPDX-License-Identifier: Apache-2.0
"""A model whose norms were swapped is saved, copied and found as what it is, or refused; never as what it was."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, EncoderDecoderConfig, EncoderDecoderModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ibnorm_hf import assert_norms, create_norm, replace_norms, restore_norms
from ibnorm_hf.modeling.identity import FAMILIES
from ibnorm_hf.modeling.recognize import iter_norms, norm_name

from ..foreign import FOREIGN
from ..hosts import labels
from ..hub.models import heads, sizes
from ..hub.test_elsewhere import inputs_for

HOSTS = {ours: host for host, ours in FAMILIES.items()}
HEADS = [(config, auto, cls) for config, auto, cls in heads()]
ONE_EACH = [(config, auto, cls) for config, auto, cls in heads(every=False)]
NAMES = [cls.__name__ for *_, cls in ONE_EACH]


def vanilla(config, cls, **more):
    """A model of the host's own class, every parameter of which has a value that no initialization gives."""
    torch.manual_seed(0)
    host = HOSTS[cls]
    model = host(host.config_class(**{**sizes(config.model_type), **labels(host), **more})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def foreign():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[FOREIGN](**sizes("ibnorm_llama"))).eval()


@torch.no_grad()
def output(model, like):
    return model(**{k: v if v.is_floating_point() else v.long() for k, v in inputs_for(like).items()})[0]


def says(model, **flags):
    return {flag: getattr(model.config, flag) for flag in flags} == flags


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head[2].__name__)
def test_every_head_is_saved_as_ours_and_loads_swapped(head, tmp_path):
    config, auto, cls = head
    model = vanilla(config, cls)
    before = output(model, model)
    replace_norms(model, "ibnorm-t", norm_lambda=1)
    assert type(model) is cls and type(model.config) is config and says(model, norm_type="ibnorm-t", norm_lambda=1)
    swapped = output(model, model)
    assert not torch.allclose(swapped, before, atol=1e-4)
    model.save_pretrained(tmp_path)
    again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is cls and not info["missing_keys"] and not info["unexpected_keys"]
    weights = again.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    # A product with one column, which chooses among choices, rounds by where in memory its weights lie.
    torch.testing.assert_close(output(again.eval(), model), swapped, rtol=0, atol=1e-6)
    assert all(norm_name(m[0]) == "ibnorm-t" for _, m in iter_norms(AutoModel.from_pretrained(tmp_path)))


@pytest.mark.parametrize("head", ONE_EACH, ids=NAMES)
def test_copies_pickles_and_restored_models(head, tmp_path):
    config, auto, cls = head
    model = vanilla(config, cls)
    host, own = type(model), model.config
    own._name_or_path = model.name_or_path = "somebody/weights"
    twin = host(own)
    before = output(model, model)
    report = replace_norms(model, "ibnorm-l", norm_lambda=1)
    swapped = output(model, model)
    assert type(own) is host.config_class and twin.config is own and type(twin) is host
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is cls and type(other.config) is config
        assert torch.equal(output(other, model), swapped) and all(p.requires_grad for p in other.parameters())
    configs = {id(m.config) for m in model.modules() if hasattr(m, "config")}
    assert configs == {id(model.config)}
    restore_norms(model, report)
    assert type(model) is host and type(model.config) is host.config_class
    assert torch.equal(output(model, model), before) and model.config._name_or_path == "somebody/weights"
    assert model.config.to_dict() == own.to_dict()
    model.save_pretrained(tmp_path)
    assert type(auto.from_pretrained(tmp_path)) is host


@pytest.mark.parametrize("head", ONE_EACH, ids=NAMES)
def test_the_hosts_own_class_refuses_our_checkpoint(head, tmp_path):
    """It knows nothing of our model type; a warning and a model with its own norms is what it would give."""
    config, _, cls = head
    model = vanilla(config, cls)
    replace_norms(model, "ibnorm-l")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"holds a {config.model_type}, whose norms a {HOSTS[cls].__name__} has not"):
        HOSTS[cls].from_pretrained(tmp_path)
    with pytest.raises(AttributeError, match=r"this model has other norms than \w+: import ibnorm_hf"):
        HOSTS[cls].config_class.from_pretrained(tmp_path)
    assert "vanilla_host" not in cls.from_pretrained(tmp_path).config.to_dict()
    assert not hasattr(model.config, "vanilla_host")
    assert config.from_json_file(tmp_path / "config.json").to_dict() == model.config.to_dict()


def test_a_reference_model_is_no_vanilla_one(tmp_path):
    """As trainers of preferences make one: a deep copy, or the weights that the config names as its source."""
    config, auto, cls = next(head for head in HEADS if head[2].__name__ == "IBNormLlamaForCausalLM")
    vanilla(config, cls).save_pretrained(tmp_path)
    model = auto.from_pretrained(tmp_path).eval()
    assert model.config._name_or_path == str(tmp_path)
    report = replace_norms(model, "ibnorm-t", norm_lambda=1)
    reference = copy.deepcopy(model).requires_grad_(False)
    assert torch.equal(output(reference, model), output(model, model))
    with pytest.raises(OSError, match="Repo id must"):
        auto.from_pretrained(model.config._name_or_path)
    assert model.name_or_path == ""
    restore_norms(model, report)
    assert type(auto.from_pretrained(model.config._name_or_path)) is type(model)


def test_the_flags_of_a_swap_are_those_of_the_config(tmp_path):
    config, auto, cls = next(head for head in HEADS if head[2].__name__ == "IBNormLlamaForCausalLM")
    model = vanilla(config, cls)
    flags = {"norm_order": "standardize-first", "norm_lambda_learned": True, "norm_depth_scale": "sqrt"}
    replace_norms(
        model, "ibnorm-s", norm_lambda=[2, 3], norm_bias=True, norm_scope=["pre-mlp", "final"], **flags, exclude=["1.*"]
    )
    assert says(model, **flags, norm_lambda=[2, 3], norm_bias=True, norm_scope=["pre-mlp", "final"])
    assert model.config.norm_exclude == ["1.*"]
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path).eval()
    assert torch.equal(output(again, model), output(model, model))
    plain = vanilla(config, cls)
    replace_norms(plain, "rmsnorm", norm_affine=False)
    assert says(plain, norm_affine=False, norm_bias=False)


def test_a_second_swap_is_said_or_refused(tmp_path):
    config, auto, cls = next(head for head in HEADS if head[2].__name__ == "IBNormLlamaForCausalLM")
    model = vanilla(config, cls)
    first = replace_norms(model, "ibnorm-l")
    second = replace_norms(model, "rmsnorm")
    assert says(model, norm_type="rmsnorm", norm_lambda=None) and type(model) is cls
    restore_norms(model, second)
    assert says(model, norm_type="ibnorm-l") and type(model) is cls
    partly = replace_norms(model, "rmsnorm", norm_scope="final")
    model.save_pretrained(tmp_path / "two")
    saved = json.loads((tmp_path / "two" / "config.json").read_text())["norm_replacements"]
    assert saved["model.norm"] == {"norm_type": "rmsnorm", "norm_affine": True, "norm_bias": False} and len(saved) == 5
    with pytest.raises(ValueError, match=r"by ibnorm_hf\.load_swapped"):
        auto.from_pretrained(tmp_path / "two")
    assert_norms(model)
    other = replace_norms(model, "layernorm")  # of one kind again
    assert says(model, norm_type="layernorm") and type(model) is cls
    for report in (other, partly):
        restore_norms(model, report)
    assert type(model) is cls and says(model, norm_type="ibnorm-l")
    restore_norms(model, first)
    assert type(model) is HOSTS[cls]


def test_restoring_out_of_order_leaves_a_name_that_nothing_loads(tmp_path):
    config, auto, cls = next(head for head in HEADS if head[2].__name__ == "IBNormLlamaForCausalLM")
    model = vanilla(config, cls)
    first = replace_norms(model, "ibnorm-l", norm_scope="final")
    replace_norms(model, "ibnorm-t", norm_scope="pre-mlp")
    restore_norms(model, first)
    assert norm_name(model.model.norm) == "rmsnorm" or type(model.model.norm).__name__ == "LlamaRMSNorm"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"by ibnorm_hf\.load_swapped"):
        auto.from_pretrained(tmp_path)


def test_a_host_of_no_family_is_refused_by_everybody(tmp_path):
    model = foreign()
    host = type(model)
    before = output(model, model)
    report = replace_norms(model, "ibnorm-l", norm_lambda=1)
    swapped = output(model, model)
    model.save_pretrained(tmp_path / "swapped")
    saved = json.loads((tmp_path / "swapped" / "config.json").read_text())
    assert saved["model_type"] == f"ibnorm_swapped_{FOREIGN}" and saved["architectures"] == [f"IBNorm{host.__name__}"]
    assert set(saved["norm_replacements"]) == {r.path for r in report.replacements}
    with pytest.raises(ValueError, match=r"has no registered type; load it by ibnorm_hf\.load_swapped"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "swapped")
    with pytest.raises(ValueError, match=r"load it by ibnorm_hf\.load_swapped"):
        host.from_pretrained(tmp_path / "swapped")
    with pytest.raises(AttributeError, match=f"norms of this {FOREIGN} were swapped; load it by ibnorm_hf.load_s"):
        host.config_class.from_pretrained(tmp_path / "swapped")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and torch.equal(output(other, model), swapped)
        other.save_pretrained(tmp_path / "copy")
        assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == saved["model_type"]
    restore_norms(model, report)
    assert type(model) is host and model.config.model_type == FOREIGN and not hasattr(model.config, "norm_replacements")
    assert torch.equal(output(model, model), before)
    model.save_pretrained(tmp_path / "vanilla")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "vanilla")) is host


def test_a_class_of_its_user_is_not_taken_for_the_family(tmp_path):
    _, auto, cls = next(head for head in HEADS if head[2].__name__ == "IBNormLlamaForCausalLM")

    class Mine(HOSTS[cls]):
        pass

    model = Mine(HOSTS[cls].config_class(**sizes("ibnorm_llama")))
    replace_norms(model, "ibnorm-l")
    assert isinstance(model, Mine)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"by ibnorm_hf\.load_swapped"):
        auto.from_pretrained(tmp_path)


def test_wrapped_and_nested_models_are_named_too(tmp_path):
    config, auto, cls = next(head for head in HEADS if head[2].__name__ == "IBNormGPT2LMHeadModel")
    model = vanilla(config, cls)
    around = nn.Sequential(nn.LayerNorm(4), model)
    replace_norms(around, "ibnorm-t", norm_lambda=[1, 2, 3, 4], exclude=["0", "1.transformer.ln_f"])
    assert type(model) is cls and says(model, norm_lambda=[1, 2, 3, 4], norm_exclude=["transformer.ln_f"])
    model.save_pretrained(tmp_path)
    assert torch.equal(output(auto.from_pretrained(tmp_path).eval(), model), output(model, model))


def test_norms_that_the_config_does_not_say_are_not_saved(tmp_path):
    """Set by hand, or swapped in a part of the model."""
    config, _, cls = next(head for head in HEADS if head[2].__name__ == "IBNormLlamaForCausalLM")
    model = vanilla(config, cls)
    model.model.norm = create_norm("ibnorm-l", 16)
    with pytest.raises(
        ValueError, match=r"'model\.norm' is IBNorm, which the config of this LlamaForCausalLM does not"
    ):
        model.save_pretrained(tmp_path / "by_hand")
    inner = vanilla(config, cls)
    replace_norms(inner.model, "rmsnorm")
    with pytest.raises(ValueError, match="call replace_norms on the whole model"):
        inner.save_pretrained(tmp_path / "inner")
    inner.model.save_pretrained(tmp_path / "part")
    assert type(AutoModel.from_pretrained(tmp_path / "part")).__name__ == "IBNormLlamaModel"
    part = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 9,
    }
    bert = CONFIG_MAPPING["bert"](**part)
    both = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(bert, copy.deepcopy(bert)))
    replace_norms(both, "ibnorm-l")
    both.save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match=r"by ibnorm_hf\.load_swapped"):
        AutoModel.from_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="call replace_norms on the whole model"):
        both.encoder.save_pretrained(tmp_path / "encoder")
