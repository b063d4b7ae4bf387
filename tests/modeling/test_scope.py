# SPDX-License-Identifier: Apache-2.0
"""Which norms a config swaps: by site (``norm_scope``) and by name (``norm_exclude``), on every family."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM

from ibnorm_hf import assert_norms, create_norm, replace_norms
from ibnorm_hf.modeling.recognize import iter_norms, norm_name
from ibnorm_hf.modeling.scope import SCOPES, check_scope, is_named
from ibnorm_hf.modeling.sites import site_in

from ..hub.models import build, sizes
from ..hub.models import heads as every_head

FAMILIES = {config.model_type: (config, auto, cls) for config, auto, cls in every_head(every=False)}
TEXT = [kind for kind, (config, _, _) in FAMILIES.items() if config.norm_area == "token"]
KIND = {"final": "final", "pre-attention": "attention", "pre-mlp": "mlp"}


def swapped(model):
    return {path for path, modules in iter_norms(model) if norm_name(modules[0]) == "ibnorm-t"}


def in_base(model):
    """Those that the model without its head has too; BERT's head that fills masks has a norm of its own."""
    prefix = f"{model.base_model_prefix}."
    inside = hasattr(model, model.base_model_prefix)
    return {path.removeprefix(prefix) for path in swapped(model) if path.startswith(prefix) or not inside}


def kinds(model):
    return {path: site_in(model, path).kind for path, _ in iter_norms(model)}


def same(model, again):
    a, b = model.state_dict(), again.state_dict()
    assert {path: str(m[0]) for path, m in iter_norms(model)} == {path: str(m[0]) for path, m in iter_norms(again)}
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("scope", [*KIND, ["pre-mlp", "Pre_Attention"]], ids=str)
@pytest.mark.parametrize("kind", TEXT)
def test_each_scope_swaps_its_sites_alone_and_travels(kind, scope, tmp_path):
    config, auto, cls = FAMILIES[kind]
    words = [scope] if isinstance(scope, str) else ["pre-mlp", "pre-attention"]
    try:
        model = build(config, cls, norm_type="ibnorm-t", norm_scope=scope)
    except ValueError as error:  # a host of post-norms has no such site, and says so
        whole = build(config, cls, norm_type="ibnorm-t")
        assert "has no norm to replace at norm_scope=" in str(error)
        assert not {KIND[word] for word in words} & set(kinds(whole).values())
        return
    assert swapped(model) == {path for path, site in kinds(model).items() if site in {KIND[word] for word in words}}
    assert 0 < len(swapped(model)) < len(kinds(model))
    assert_norms(model)
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert again.config.norm_scope == (words[0] if len(words) == 1 else words)
    same(model, again)
    base = AutoModel.from_pretrained(tmp_path)
    assert swapped(base) == in_base(model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_excluded_stays_the_hosts_and_travels(kind, tmp_path):
    config, auto, cls = FAMILIES[kind]
    paths = list(kinds(build(config, cls, norm_type="ibnorm-t")))
    last = [path for path in paths if path.startswith(f"{cls.base_model_prefix}.")][-1]
    names = [paths[0], f"{last.rpartition('.')[0]}.*"] if last.count(".") > 1 else [paths[0]]
    model = build(config, cls, norm_type="ibnorm-t", norm_exclude=names)
    assert swapped(model) == {path for path in paths if not any(is_named(path, name) for name in names)}
    assert_norms(model)
    model.save_pretrained(tmp_path)
    same(model, auto.from_pretrained(tmp_path))
    # Written for a head, it means the same norms in the model without one.
    assert swapped(AutoModel.from_pretrained(tmp_path)) == in_base(model)


def test_lambdas_are_counted_over_the_norms_in_scope():
    config, _, cls = FAMILIES["ibnorm_llama"]
    model = build(config, cls, norm_type="ibnorm-t", norm_scope="pre-mlp", norm_lambda=[2, 3])
    lambdas = [m[0].norm_lambda for _, m in iter_norms(model) if norm_name(m[0]) == "ibnorm-t"]
    assert lambdas == [2, 3]


def test_a_norm_left_out_starts_as_the_hosts_where_a_checkpoint_lacks_it(tmp_path):
    config, auto, cls = FAMILIES["ibnorm_llama"]
    model = build(config, cls, norm_type="ibnorm-t", norm_scope="final")
    weights = {name: w for name, w in model.state_dict().items() if not name.endswith("layernorm.weight")}
    model.save_pretrained(tmp_path, state_dict=weights)
    again = auto.from_pretrained(tmp_path)
    assert all((layer.input_layernorm.weight == 1).all() for layer in again.model.layers)
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)


def test_surgery_takes_a_scope_and_the_guard_heeds_it():
    model = LlamaForCausalLM(LlamaConfig(**sizes("ibnorm_llama")))
    report = replace_norms(model, "ibnorm-t", norm_scope=["final", "pre-mlp"], exclude=["layers.1.*"])
    assert [r.path for r in report.replacements] == ["model.layers.0.post_attention_layernorm", "model.norm"]
    assert_norms(model)  # its config says which
    with pytest.raises(RuntimeError, match=r"post_attention_layernorm' is ibnorm-t, expected layernorm"):
        assert_norms(model, "layernorm")
    model.model.norm = create_norm("rmsnorm", 16)
    with pytest.raises(RuntimeError, match=r"'model\.norm' is rmsnorm, expected ibnorm-t"):
        assert_norms(model)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"norm_scope": "finl"}, "Unknown norm_scope 'finl'; known: all, final, pre-attention, pre-mlp. Did you mean"),
        ({"norm_scope": ["final", "premlp"]}, "Did you mean 'pre-mlp'"),
        ({"norm_scope": []}, "norm_scope is 'all', or one or several of"),
        ({"norm_scope": ["all", "final"]}, "norm_scope is 'all', or one or several of"),
        ({"norm_scop": "final"}, "did you mean 'norm_scope'"),
        ({"norm_exclude": "q_norm"}, "norm_exclude"),
    ],
    ids=str,
)
def test_wrong_words_in_a_config_are_refused(flags, message):
    with pytest.raises(Exception, match=message):
        AutoConfig.for_model("ibnorm_llama", **flags)


def test_a_wrong_name_and_a_scope_over_a_batch_are_refused():
    config, _, cls = FAMILIES["ibnorm_llama"]
    with pytest.raises(ValueError, match=r"exclude names 'input_layrnorm', .* did you mean 'input_layernorm'\?"):
        build(config, cls, norm_exclude=["input_layrnorm"])
    with pytest.raises(ValueError, match="its norms are called input_layernorm, norm, post_attention_layernorm"):
        build(config, cls, norm_exclude=["o_proj"])
    with pytest.raises(Exception, match="norm_scope=final is for a transformer"):
        AutoConfig.for_model("ibnorm_resnet", norm_scope="final")


def test_one_word_and_a_list_of_one_are_the_same_scope():
    assert check_scope(["Final"]) == "final" and check_scope(("final", "pre_mlp")) == ["final", "pre-mlp"]
    assert set(KIND) | {"all"} == set(SCOPES)
