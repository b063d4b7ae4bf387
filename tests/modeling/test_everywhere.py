# SPDX-License-Identifier: Apache-2.0
"""Every family in other hands: default dtypes, devices, offload, ties, windows, resized embeddings."""

import accelerate
import pytest
import torch
from safetensors import safe_open

from ibnorm_hf import assert_norms, export
from ibnorm_hf.modeling.recognize import iter_norms

from ..hosts import CAUSAL, HOSTS, TEXT
from ..hub.models import build, heads, sizes
from .test_identity import NAMES, ONE_EACH

LANGUAGE = {name: host.heads[host.language] for name, host in TEXT.items()}
WINDOWED = [name for name, host in CAUSAL.items() if "sliding_window" in host.sizes(sliding_window=4)]
each_head = pytest.mark.parametrize("head", ONE_EACH, ids=NAMES)
each_text = pytest.mark.parametrize("name", TEXT)


@pytest.fixture
def default_dtype():
    """Sets another default dtype for the length of a test."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def gradients(model):
    torch.manual_seed(0)
    model.zero_grad()
    out = model(**inputs(model))[0].float()
    (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float32).view(out.shape)).sum().backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def output(model):
    return model(**inputs(model))[0].float()


def inputs(model):
    torch.manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 8, 8, dtype=torch.float32).to(model.dtype)}
    return {"input_ids": torch.randint(1, 64, (2, 7))}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@each_head
def test_another_default_dtype_changes_nothing_that_is_stated(head, dtype, default_dtype, tmp_path):
    config, auto, cls = head
    model = build(config, cls)
    model.save_pretrained(tmp_path)
    wanted, expected = gradients(model), output(model)
    default_dtype(dtype)
    loaded = auto.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(output(loaded), expected, rtol=1e-5, atol=1e-5)
    found = gradients(loaded)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
    fresh = cls(config(**sizes(config.model_type)))
    assert {p.dtype for p in fresh.parameters()} == {dtype}
    optimizer = torch.optim.SGD(fresh.parameters(), lr=1e-2)
    gradients(fresh)
    optimizer.step()
    assert all(p.isfinite().all() for p in fresh.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_head
def test_low_precision_by_argument(head, dtype, tmp_path):
    config, auto, cls = head
    model = build(config, cls)
    model.save_pretrained(tmp_path)
    low = auto.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {p.dtype for p in low.parameters()} == {dtype}
    with torch.no_grad():
        out = low(**inputs(low))[0]
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), output(model), rtol=0.1, atol=0.1)
    low.save_pretrained(tmp_path / "low")
    assert auto.from_pretrained(tmp_path / "low").dtype == dtype


@each_head
def test_built_empty_and_filled(head):
    config, _, cls = head
    model = build(config, cls)
    with accelerate.init_empty_weights():
        empty = cls(model.config)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert [str(m) for _, m in iter_norms(empty)] == [str(m) for _, m in iter_norms(model)]
    # By hand: accelerate reads a checkpoint by name, and transformers stores ViT's under names of another version.
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.tie_weights()
    assert_norms(empty)
    assert torch.equal(output(empty.eval()), output(model))


@pytest.mark.parametrize("where", ["cpu", "disk"])
@each_head
def test_offloaded(head, where, tmp_path):
    config, auto, cls = head
    model = build(config, cls)
    model.save_pretrained(tmp_path)
    away = auto.from_pretrained(tmp_path, low_cpu_mem_usage=True, device_map="cpu").eval()
    if where == "cpu":
        accelerate.cpu_offload(away, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(away, str(tmp_path / "offload"), execution_device=torch.device("cpu"))
    assert any(p.device.type == "meta" for p in away.parameters())
    assert_norms(away)
    torch.testing.assert_close(output(away), output(model), rtol=0, atol=1e-6)


@each_text
def test_tied_embeddings_are_stored_and_counted_once(name, tmp_path):
    host, cls = TEXT[name], LANGUAGE[name]
    model = build(host.config, cls, tie_word_embeddings=True)
    vanilla = host.language.from_config(host.vanilla(**{**sizes(host.model_type), "tie_word_embeddings": True}))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    count = sum(p.numel() for p in model.parameters())
    assert count == model.num_parameters() == vanilla.num_parameters()
    model.save_pretrained(tmp_path / "model")
    folders = [tmp_path / "model", export(tmp_path / "model", tmp_path / "exported")]
    for folder in folders:
        with safe_open(folder / "model.safetensors", "pt") as weights:
            assert sum(weights.get_tensor(key).numel() for key in weights.keys()) == count  # noqa: SIM118
        again = host.language.from_pretrained(folder).eval()
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
        assert torch.equal(output(again), output(model))


@pytest.mark.parametrize("name", WINDOWED)
def test_a_sliding_window_generates_alike_with_and_without_a_cache(name):
    host = CAUSAL[name]
    window = host.sizes(sliding_window=4, use_sliding_window=True, max_window_layers=0)
    model = build(host.config, LANGUAGE[name], **{**window, **sizes(host.model_type), "eos_token_id": None}).eval()
    assert "sliding_attention" in (getattr(model.config, "layer_types", None) or ["sliding_attention"])
    ids = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, use_cache=False, **options)
    assert plain.shape == (2, 17) and torch.equal(model.generate(ids, use_cache=True, **options), plain)
    far = ids.clone()
    far[:, 0] = far[:, 0] % 63 + 1
    with torch.no_grad():
        moved = (model(far).logits[:, -1] - model(ids).logits[:, -1]).abs().max()
    reach = (model.config.num_hidden_layers * (model.config.sliding_window - 1)) < 8
    assert (moved < 1e-6) == reach or "full_attention" in (getattr(model.config, "layer_types", None) or [])


@each_text
def test_resized_embeddings(name, tmp_path):
    host = TEXT[name]
    model = build(host.config, LANGUAGE[name])
    before, norms = output(model), [str(m) for _, m in iter_norms(model)]
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model.config.vocab_size == 70 and [str(m) for _, m in iter_norms(model)] == norms
    torch.testing.assert_close(output(model)[..., :64], before, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    again = host.language.from_pretrained(tmp_path).eval()
    assert torch.equal(output(again), output(model))


def test_the_families_here_are_those_of_the_registry():
    assert {config.model_type for config, _, _ in ONE_EACH} == {host.model_type for host in HOSTS.values()}
    assert {"mistral", "gemma3_text"} <= set(WINDOWED) and len(list(heads(every=False))) == len(HOSTS)
