# SPDX-License-Identifier: Apache-2.0
"""Every host of images with norm flags: Auto classes, loading, initialisation, conversion and its report."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
)

from ibnorm_hf import (
    IBBatchNorm2d,
    IBNorm,
    assert_norms,
    create_norm,
    list_norms,
    register_compression,
    replace_norms,
    restore_norms,
)
from ibnorm_hf.modeling.norms import LayerNorm2d
from ibnorm_hf.modeling.recognize import norm_name

from ..hosts import HOSTS, IMAGES, shake

PICTURES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 4])


def make_config(architecture, **flags):
    host = HOSTS[architecture]
    return AutoConfig.for_model(host.model_type, **{**host.sizes(), **flags})


def make_vanilla(architecture):
    torch.manual_seed(0)
    host = HOSTS[architecture]
    return shake(AutoModelForImageClassification.from_config(host.vanilla(**host.sizes())))


def make_model(architecture, auto=AutoModelForImageClassification, **flags):
    torch.manual_seed(0)
    return shake(auto.from_config(make_config(architecture, **flags)))


def first_output(model):
    with torch.no_grad():
        out = model(PICTURES)[0]
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize(
    "architecture, auto", [(n, auto) for n, host in IMAGES.items() for auto in host.heads], ids=str
)
def test_auto_round_trip_is_bit_equal(architecture, auto, tmp_path):
    model = make_model(architecture, auto, norm_type="ibnorm-t", norm_lambda=2)
    assert type(model).__name__.startswith("IBNorm")
    model.save_pretrained(tmp_path)
    # AutoBackbone.from_pretrained asks the Hub for every name, folders included: load by the class it chose.
    loader = type(model) if auto is AutoBackbone else auto
    again, report = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not any(report[k] for k in ("missing_keys", "unexpected_keys"))
    assert_norms(again, "ibnorm-t")
    assert torch.equal(first_output(again.eval()), first_output(model))


@pytest.mark.parametrize(
    "architecture, name", [(a, n) for a, host in IMAGES.items() for n in list_norms(host.area)], ids=str
)
def test_every_norm_trains(architecture, name):
    model = make_model(architecture, norm_type=name).train()
    assert {norm_name(m) for m in model.modules() if norm_name(m)} == {name}
    assert_norms(model)
    loss = model(PICTURES, labels=LABELS).loss
    loss.backward()
    assert math.isfinite(loss.item()) and all(p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


def test_areas():
    assert all(
        isinstance(m, IBBatchNorm2d) for n, m in make_model("resnet").named_modules() if n.endswith(".normalization")
    )
    assert sum(isinstance(m, IBNorm) for m in make_model("vit").modules()) == 5
    assert sum(isinstance(m, LayerNorm2d) for m in make_model("resnet", norm_type="layernorm").modules()) == 8


@pytest.mark.parametrize("architecture", IMAGES)
def test_vanilla_weights_give_vanilla_logits(architecture, tmp_path):
    host_norm = HOSTS[architecture].norm
    vanilla = make_vanilla(architecture)
    ours = AutoModelForImageClassification.from_config(make_config(architecture, norm_type=host_norm)).eval()
    ours.load_state_dict(vanilla.state_dict())
    assert torch.equal(first_output(ours), first_output(vanilla))
    vanilla.save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path, norm_type=host_norm).eval()
    assert torch.equal(first_output(loaded), first_output(vanilla))
    assert make_model(architecture).num_parameters() == vanilla.num_parameters()


@pytest.mark.parametrize("architecture", IMAGES)
def test_base_models_and_heads_share_checkpoints(architecture, tmp_path):
    """ViT's are stored under older key names, which transformers translates by class name."""
    host_norm = HOSTS[architecture].norm
    vanilla = make_vanilla(architecture)
    vanilla.save_pretrained(tmp_path / "vanilla")
    ours = make_model(architecture, norm_type=host_norm)
    ours.load_state_dict(vanilla.state_dict())
    ours.save_pretrained(tmp_path / "ours")
    stored = [set(load_file(tmp_path / n / "model.safetensors")) for n in ("vanilla", "ours")]
    assert stored[0] == stored[1]
    expected = first_output(getattr(vanilla, vanilla.base_model_prefix))
    base_class = type(make_model(architecture, AutoModel))
    for name in ("vanilla", "ours"):
        base, report = base_class.from_pretrained(tmp_path / name, norm_type=host_norm, output_loading_info=True)
        assert not {key for key in report["missing_keys"] if "pooler" not in key}
        assert torch.equal(first_output(base.eval()), expected)
    base.save_pretrained(tmp_path / "base")
    again = type(base).from_pretrained(tmp_path / "base").eval()
    assert torch.equal(first_output(again), expected)


def test_vanilla_resnet_weights_in_ibnorm_lose_only_the_running_variance(tmp_path):
    vanilla = make_vanilla("resnet")
    vanilla.save_pretrained(tmp_path)
    ours, report = type(make_model("resnet")).from_pretrained(tmp_path, output_loading_info=True)
    assert {key.rpartition(".")[2] for key in report["unexpected_keys"]} == {"running_var"}
    lost = {key.rpartition(".")[2] for key in report["missing_keys"]}
    assert lost == {"running_compressed_mean", "running_compressed_var"}
    stem, theirs = ours.resnet.embedder.embedder.normalization, vanilla.resnet.embedder.embedder.normalization
    assert torch.equal(stem.running_mean, theirs.running_mean)
    assert torch.equal(stem.running_compressed_var, torch.ones(8))


def drop_norms(folder):
    path = folder / "model.safetensors"
    kept = {n: t for n, t in load_file(path).items() if "norm" not in n}
    save_file(kept, path, metadata={"format": "pt"})


def in_norms(model):
    return {n: t for n, t in model.state_dict().items() if "norm" in n}


AFFINE = ({}, {"norm_bias": False}, {"norm_affine": False})
MISSING = [
    (architecture, auto, name, flags)
    for architecture, host in IMAGES.items()
    for auto in host.heads
    for name in list_norms(host.area)
    for flags in (AFFINE if auto is AutoModelForImageClassification else AFFINE[:1])
    if create_norm(name, 8, area=host.area, **flags).state_dict()  # else there is nothing to load
]


@pytest.mark.parametrize("architecture, auto, name, flags", MISSING, ids=str)
def test_missing_norms_start_right(architecture, auto, name, flags, tmp_path):
    model = make_model(architecture, auto, norm_type=name, **flags)
    start = in_norms(auto.from_config(model.config))
    moved = in_norms(model)
    assert start.keys() == moved.keys() and not any(
        torch.equal(moved[n], t) for n, t in start.items() if t.is_floating_point()
    )
    model.save_pretrained(tmp_path)
    drop_norms(tmp_path)
    for n, t in in_norms(type(model).from_pretrained(tmp_path)).items():
        if n.endswith(".down"):
            assert 0.01 < t.std() < 0.03  # noise, anew
        else:
            assert torch.equal(t, start[n]), n


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", IMAGES)
def test_low_precision_loads(architecture, dtype, tmp_path):
    model = make_model(architecture)
    model.save_pretrained(tmp_path)
    low = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype, device_map="auto").eval()
    with torch.no_grad():
        out = low(PICTURES.to(dtype)).logits
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), first_output(model), rtol=0.05, atol=0.05)


def test_backbone_gives_the_stages():
    config = make_config("resnet", out_features=["stage1", "stage2"])
    maps = AutoBackbone.from_config(config)(PICTURES).feature_maps
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 4, 4), (16, 2, 2)]


@pytest.mark.parametrize("architecture", IMAGES)
def test_compiles_as_one_graph_with_labels(architecture):
    torch.compiler.reset()
    model = make_model(architecture).train()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    results = []
    for m in (model, compiled):
        loss = m(pixel_values=PICTURES, labels=LABELS).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in m.parameters()), *m.buffers()])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-3, atol=1e-5)


def test_report_says_what_is_carried_and_lost():
    vanilla = make_vanilla("resnet")
    before, state = first_output(vanilla), copy.deepcopy(vanilla.state_dict())
    stem = vanilla.resnet.embedder.embedder.normalization
    report = replace_norms(vanilla, "ibnorm-l", norm_lambda=2)
    first = report.replacements[0]
    assert (first.old_class, first.new_class) == ("BatchNorm2d", "IBBatchNorm2d")
    assert first.carried == ("weight", "bias", "running_mean")
    assert first.dropped == ("running_var", "num_batches_tracked")
    assert first.created == ("running_compressed_mean", "running_compressed_var", "num_batches_tracked")
    assert "running statistics start anew" in str(report) and "8 norms are now ibnorm-l" in str(report)
    new = vanilla.resnet.embedder.embedder.normalization
    assert new.weight is stem.weight and torch.equal(new.running_mean, stem.running_mean)
    assert new.running_mean is not stem.running_mean  # a restored model must not find statistics of another
    assert new.eps == stem.eps and new.momentum == stem.momentum
    vanilla.train()(PICTURES)
    restore_norms(vanilla.eval(), report)
    assert torch.equal(first_output(vanilla), before)
    assert all(torch.equal(value, state[name]) for name, value in vanilla.state_dict().items())


def test_converted_resnet_evaluates_after_training_batches():
    """At a large lambda IBNorm is BatchNorm; what it lacks after conversion is running statistics, and no more."""
    vanilla = make_vanilla("resnet").train()
    for m in vanilla.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    ours = copy.deepcopy(vanilla)
    replace_norms(ours, "ibnorm-t", norm_lambda=1e6)
    expected = vanilla(PICTURES).logits
    torch.testing.assert_close(ours(PICTURES).logits, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.eval()(PICTURES).logits, expected, rtol=1e-3, atol=1e-4)


def test_batchnorm_to_normalnorm_carries_running_statistics_and_momentum():
    host = nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=None), nn.BatchNorm2d(4, track_running_stats=False))
    host(torch.randn(8, 4, 3, 3))
    same = replace_norms(copy.deepcopy(host), "batchnorm").replacements[0]
    assert same.carried == ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert same.change == "batchnorm -> batchnorm: same function"
    assert torch.equal(same.new.running_var, host[0].running_var) and same.new.num_batches_tracked == 1
    report = replace_norms(host, "normalnorm")
    first, second = report.replacements
    assert first.carried == ("weight", "bias", "running_mean", "running_var")
    assert host[0].momentum is None and host[0].eps == 1e-3
    assert second.carried == ("weight", "bias") and not list(host[1].named_buffers())
    host(torch.randn(8, 4, 3, 3))
    replace_norms(host, "layernorm")
    assert {norm_name(m) for m in host} == {"layernorm"}


@pytest.mark.parametrize(
    "architecture, flags, message",
    [
        ("vit", {"norm_type": "batchnorm"}, "'batchnorm' is for a host that normalizes over the batch, such as ResNet"),
        ("resnet", {"norm_type": "bachnorm"}, "Did you mean 'batchnorm'?"),
        ("resnet", {"norm_order": "standardize-first"}, "over a batch there is only one order"),
        ("resnet", {"norm_lamda": 3}, "did you mean 'norm_lambda'?"),
    ],
)
def test_a_flag_outside_its_domain_is_one_clear_error(architecture, flags, message):
    with pytest.raises(ValueError) as error:
        make_config(architecture, **flags)
    assert message in str(error.value)


def test_a_compression_of_ones_own_works_over_a_batch():
    if "my-arctan" not in list_norms():
        register_compression("my-arctan", torch.atan, lambda u, s: 1 / (1 + u * u))
    try:
        assert "my-arctan" in str(make_model("resnet", norm_type="my_arctan"))
    finally:
        from ibnorm_hf.modeling import compression

        compression._REGISTRY.pop("my-arctan")
