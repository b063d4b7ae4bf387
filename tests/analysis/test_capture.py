# SPDX-License-Identifier: Apache-2.0
"""Activations are those of the model, at positions that depend on the seed and the data alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

import ibnorm_hf
from ibnorm_hf.analysis.capture import (
    capture,
    capture_bytes,
    image_batch,
    norm_sites,
    residual_sites,
    text_batch,
)
from ibnorm_hf.common import strict_yaml
from ibnorm_hf.common.packed import IGNORED

ROOT = Path(__file__).parents[2]
TEXT = {
    "ibnorm_llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
}
FIRST = {"ibnorm_llama": "model.layers.0.input_layernorm", "gpt2": "transformer.h.0.ln_1"}


def make(kind="ibnorm_llama", **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=50, **{**TEXT[kind], **more})
    config.bos_token_id = config.eos_token_id = 0
    return AutoModelForCausalLM.from_config(config)


def tokens(rows=6, length=9, seed=0):
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(seed))


def batches(ids, size=2):
    return [text_batch(part, part) for part in ids.split(size)]


@pytest.mark.parametrize("kind", TEXT)
def test_everything_of_a_small_text_is_what_the_model_computed(kind):
    model, ids = make(kind), tokens()
    found = capture(model, batches(ids))
    assert list(found.sites) == [*norm_sites(model), *residual_sites(model)]
    assert len(norm_sites(model)) == 10
    assert found.seen == len(found.labels) == 6 * 8, "the last token of a row has no next one"
    assert torch.equal(found.labels, ids[:, 1:].reshape(-1))
    assert torch.equal(found.places, torch.arange(48))
    states = model.eval()(ids, output_hidden_states=True, use_cache=False).hidden_states
    rows = states[0][:, :-1].reshape(48, 16)
    assert torch.allclose(found.sites[FIRST[kind] + ":in"], rows)
    layer = residual_sites(model)[0]
    assert torch.allclose(found.sites[layer], states[1][:, :-1].reshape(48, 16), atol=1e-6)
    norm = model.get_submodule(FIRST[kind])
    assert torch.allclose(norm(rows), found.sites[FIRST[kind] + ":out"], atol=1e-6)


def test_the_sample_is_bounded_seeded_and_the_same_for_every_model():
    ids = tokens(rows=40)
    one, two = (capture(make(), batches(ids, size), samples=20, seed=3) for size in (2, 5))
    other = capture(make("gpt2"), batches(ids), samples=20, seed=3)
    assert one.seen == 320
    for found in (one, two, other):
        assert len(found.labels) == 20 and len(set(found.places.tolist())) == 20
        assert torch.equal(found.labels, ids[:, 1:].reshape(-1)[found.places])
        assert {tuple(values.shape) for values in found.sites.values()} == {(20, 16)}
    assert torch.equal(one.places, other.places)
    assert torch.equal(one.places, two.places), "however the data is cut into batches"
    everything = capture(make(), batches(ids), sites=one.sites)
    for site, values in one.sites.items():
        torch.testing.assert_close(values, everything.sites[site][one.places], msg=site)
    assert not torch.equal(one.places, capture(make(), batches(ids), samples=20, seed=4).places)


def test_every_position_is_as_likely_as_any_other():
    model, ids, counts = make(num_hidden_layers=1), tokens(rows=8, length=6), torch.zeros(40)
    for seed in range(100):
        counts[capture(model, batches(ids, 4), sites=["model.norm:in"], samples=10, seed=seed).places] += 1
    chi_square = float(((counts - 25) ** 2 / 25).sum())
    assert chi_square < 1.5 * 39, "39 degrees of freedom; 58.5 is beyond 97.5 %"


def test_padding_and_prompts_are_left_out():
    ids = tokens(rows=2, length=6)
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, :3] = IGNORED  # a prompt of three tokens
    mask[1, 4:] = 0  # padding on the right
    found = capture(make(), [text_batch(ids, labels, mask)])
    expected = [(0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]
    assert found.labels.tolist() == [int(ids[row, place + 1]) for row, place in expected]
    plain = capture(make(), [text_batch(ids[:1], ids[:1])])
    assert torch.allclose(found.sites["model.norm:out"][:2], plain.sites["model.norm:out"][3:5], atol=1e-6)
    with pytest.raises(ValueError, match="no position to sample"):
        capture(make(), [text_batch(ids, torch.full_like(ids, IGNORED))])


def test_the_model_is_in_eval_mode_meanwhile_and_left_as_it_was():
    model = make("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    model.train()
    model.transformer.h[1].eval()
    flags = [module.training for module in model.modules()]
    one, two = (capture(model, batches(tokens())) for _ in range(2))
    for site, values in one.sites.items():
        assert torch.equal(values, two.sites[site]), site
    with pytest.raises(ValueError, match=r"no transformer\.h\.7:in"):
        capture(model, batches(tokens()), sites=["transformer.h.0.ln_1:in", "transformer.h.7:in"])
    with pytest.raises(IndexError):
        capture(model, batches(tokens() + 50))
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match=r"act:mid was never run"):
        capture(model, batches(tokens()), sites=["transformer.h.0.mlp.act:mid"])


def test_replaced_norms_and_adapters_are_found():
    from peft import LNTuningConfig, get_peft_model

    model = make("gpt2")
    ibnorm_hf.replace_norms(model, "ibnorm-t", norm_lambda=0.5)
    found = capture(model, batches(tokens()))
    path = FIRST["gpt2"]
    assert torch.allclose(model.get_submodule(path)(found.sites[path + ":in"]), found.sites[path + ":out"], atol=1e-6)
    wrapped = get_peft_model(make(), LNTuningConfig(target_modules=["input_layernorm"]))
    inside = capture(wrapped, batches(tokens()))
    assert torch.allclose(inside.sites["model.norm:out"], capture(make(), batches(tokens())).sites["model.norm:out"])
    assert list(inside.sites) == [*norm_sites(make()), *residual_sites(make())]


IMAGES = {
    "ibnorm_vit": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 8, "patch_size": 4,
    },
    "ibnorm_resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "norm"), [("ibnorm_vit", "layernorm_before"), ("ibnorm_resnet", "normalization")])
def test_images_give_one_position_each(kind, norm):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, num_labels=3, **IMAGES[kind]))
    pixels, classes = torch.randn(10, 3, 8, 8), torch.arange(10) % 3
    model.train()
    found = capture(model, [image_batch(pixels[:6], classes[:6]), image_batch(pixels[6:], classes[6:])], samples=8)
    assert found.seen == 10
    assert torch.equal(found.labels, classes[found.places])
    site = next(s for s in found.sites if s.endswith(norm + ":out"))
    everything = []
    handle = model.get_submodule(site.removesuffix(":out")).register_forward_hook(lambda m, i, o: everything.append(o))
    model.eval()(pixel_values=pixels)
    handle.remove()
    (values,) = everything
    values = values.flatten(2).transpose(1, 2) if values.ndim == 4 else values
    for row, place in zip(found.sites[site], found.places, strict=True):
        distance = (values[place] - row).abs().amax(1)
        assert distance.min() < 1e-5, "a position of that very image"
    assert set(residual_sites(model)) <= set(found.sites)


def test_every_site_of_llama_350m_fits_into_four_gigabytes():
    recipe = strict_yaml.read_mapping(ROOT / "recipes" / "llama" / "350m.yaml")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("ibnorm_llama", **recipe["model"]))
    sites = [*norm_sites(model), *residual_sites(model)]
    assert len(sites) == 2 * 49 + 24
    assert capture_bytes(model, sites, 4096) == 122 * 4096 * 1024 * 4 < 4e9
    small = make()
    found = capture(small, batches(tokens()), samples=5)
    held = sum(values.numel() * values.element_size() for values in found.sites.values())
    assert held == capture_bytes(small, list(found.sites), 5), "the bound is what is held"
