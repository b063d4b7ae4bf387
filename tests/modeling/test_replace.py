# SPDX-License-Identifier: Apache-2.0
"""The surgery: what it reports, keeps, refuses and undoes, on our models and on other architectures."""

import copy
from types import MethodType

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    LlamaConfig,
    Mamba2Config,
    MptConfig,
    Qwen3Config,
)

from ibnorm_hf import IBNorm, IBNormLlamaConfig, IBNormLlamaForCausalLM, assert_norms, replace_norms, restore_norms
from ibnorm_hf.modeling.recognize import norm_name

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
}


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(12).view(2, 6)).logits


def test_report_names_every_norm_and_what_changed(llama):
    weights = {n: p for n, p in llama.named_parameters() if "norm" in n}
    report = replace_norms(llama, "IBNorm_T", norm_lambda=3)
    assert [r.path for r in report.replacements] == [n.removesuffix(".weight") for n in weights]
    first = report.replacements[0]
    assert (first.old_class, first.new_class, first.carried, first.dropped) == (
        "LlamaRMSNorm",
        "IBNorm",
        ("weight",),
        (),
    )
    assert "without centring" in first.change
    assert "model.norm" in str(report) and "5 norms are now ibnorm-t" in str(report)
    for name, parameter in weights.items():
        assert llama.get_parameter(name) is parameter
    assert llama.model.norm.eps == 1e-6 and llama.model.norm.norm_lambda == 3


def test_restore_is_the_exact_inverse(llama):
    before, modules = logits(llama), dict(llama.named_modules())
    report = replace_norms(llama, "layernorm", norm_bias=True)
    assert not torch.equal(logits(llama), before)
    restore_norms(llama, report)
    assert torch.equal(logits(llama), before)
    assert all(module is modules[name] for name, module in llama.named_modules())
    with pytest.raises(ValueError, match="no longer holds"):
        restore_norms(llama, report)


def test_swapping_rmsnorm_for_rmsnorm_changes_nothing(llama):
    before = logits(llama)
    report = replace_norms(llama, "rmsnorm")
    assert torch.equal(logits(llama), before)
    assert {r.change for r in report.replacements} == {"rmsnorm -> rmsnorm: same function"}


def test_keeps_dtype_requires_grad_mode_ties_and_hooks(llama):
    llama.to(torch.bfloat16).train()
    llama.model.layers[1].input_layernorm = llama.model.layers[0].input_layernorm
    llama.model.norm.weight.requires_grad_(False)
    calls = []
    llama.model.norm.register_forward_hook(lambda *_: calls.append("hook"))
    replace_norms(llama, "ibnorm-l")
    norm = llama.model.norm
    assert norm.weight.dtype == torch.bfloat16 and not norm.weight.requires_grad and norm.training
    assert llama.model.layers[1].input_layernorm is llama.model.layers[0].input_layernorm
    llama(torch.arange(6)[None])
    assert calls == ["hook"]


def test_one_lambda_a_norm(llama):
    replace_norms(llama, "ibnorm-l", norm_lambda=[1, 2, 3, 4, 5.5])
    assert [m.norm_lambda for m in llama.modules() if isinstance(m, IBNorm)] == [1, 2, 3, 4, 5.5]
    with pytest.raises(ValueError, match="lists 2 values, but the model has 5 norms"):
        replace_norms(llama, "ibnorm-l", norm_lambda=[1, 2])


def test_other_architectures():
    bert = AutoModel.from_config(BertConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}))
    assert len(replace_norms(bert, "ibnorm-s")) == 5
    qwen = AutoModel.from_config(Qwen3Config(**SMALL, head_dim=8))
    assert len(replace_norms(copy.deepcopy(qwen), "ibnorm-s")) == 9
    report = replace_norms(qwen, "ibnorm-s", exclude=["q_norm", "k_norm"])
    assert len(report) == 5 and type(qwen.layers[0].self_attn.q_norm).__name__ == "Qwen3RMSNorm"


def test_meta_models_are_recognised_too():
    with torch.device("meta"):
        model = AutoModel.from_config(LlamaConfig(**SMALL))
    replace_norms(model, "ibnorm-l")
    assert model.norm.weight.is_meta


class HalfNorm(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x) / 2


def test_refuses_what_it_does_not_know_and_leaves_the_model_alone():
    halved = AutoModel.from_config(LlamaConfig(**SMALL))
    halved.layers[0].input_layernorm = HalfNorm(32)
    with pytest.raises(ValueError, match=r"'layers.0.input_layernorm' \(HalfNorm\) .* exclude="):
        replace_norms(halved, "ibnorm-l")
    assert not any(isinstance(m, IBNorm) for m in halved.modules())
    with pytest.raises(ValueError, match="Sequential has no norm to replace"):
        replace_norms(nn.Sequential(nn.Linear(2, 2)), "ibnorm-l")
    with pytest.raises(ValueError, match="BatchNorm1d"):
        replace_norms(nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4)), "ibnorm-l")


def test_bad_flags_leave_the_model_alone(llama):
    for options in ({"norm_lambda": -1}, {"norm_lambda": [1, 2, 3, 4, 0]}, {"norm_order": "first"}):
        with pytest.raises(ValueError):
            replace_norms(llama, "ibnorm-l", **options)
        assert norm_name(llama.model.norm) is None


def test_assert_norms_names_a_patched_module(llama):
    with pytest.raises(RuntimeError, match="expected ibnorm-l"):
        assert_norms(llama, "ibnorm-l")
    replace_norms(llama, "ibnorm-l")
    assert_norms(llama, "ibnorm-l")
    norm = llama.model.layers[1].input_layernorm
    norm.forward = MethodType(lambda self, x: x, norm)  # what kernel patches do
    with pytest.raises(RuntimeError, match=r"The forward of 'model.layers.1.input_layernorm' \(IBNorm\) was replaced"):
        assert_norms(llama)
    with pytest.raises(RuntimeError, match="no norm to check"):
        assert_norms(nn.Linear(2, 2))


def test_assert_norms_sees_a_patched_class(llama, monkeypatch):
    replace_norms(llama, "ibnorm-l")
    monkeypatch.setattr(IBNorm, "forward", lambda self, x: x)
    with pytest.raises(RuntimeError, match="was replaced by other code"):
        assert_norms(llama)


def test_hooks_work_from_either_side_of_a_swap(llama):
    calls = []
    handle = llama.model.norm.register_forward_hook(lambda *_: calls.append("before"))
    report = replace_norms(llama, "ibnorm-l")
    handle.remove()
    llama.model.norm.register_forward_hook(lambda *_: calls.append("after"))
    restore_norms(llama, report)
    logits(llama)
    assert calls == ["after"]


def test_a_root_norm_and_a_misspelt_exclude_are_refused(llama):
    with pytest.raises(ValueError, match="LayerNorm is itself a norm"):
        replace_norms(nn.LayerNorm(8), "ibnorm-l")
    with pytest.raises(ValueError, match="exclude names 'q_nrom', but LlamaForCausalLM has no such norm"):
        replace_norms(llama, "ibnorm-l", exclude=["q_nrom"])
    with pytest.raises(ValueError, match="'1' \\(LayerNorm\\) looks like a norm"):
        replace_norms(nn.Sequential(nn.LayerNorm(8), nn.LayerNorm((4, 8))), "ibnorm-l")


class ChannelsFirstNorm(nn.LayerNorm):
    """As ConvNext's: one class, one width, and a flag that decides the dimension."""

    def __init__(self, width, channels_first):
        super().__init__(width)
        self.channels_first = channels_first

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1) if self.channels_first else super().forward(x)


class RMSNormWithBuffer(nn.RMSNorm):
    """As FalconMamba's: whoever replaces it loses a buffer that the model around it reads."""

    def __init__(self, width):
        super().__init__(width, eps=1e-6)
        self.register_buffer("scale", torch.ones(width))


class LargerEpsNorm(nn.RMSNorm):
    def forward(self, x):
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight, 1e-3)


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(1, 8),
        nn.GroupNorm(1, 3),
        nn.GroupNorm(2, 8),
        nn.BatchNorm1d(8),
        nn.BatchNorm1d(3),
        nn.BatchNorm3d(8),
        nn.SyncBatchNorm(8),
        nn.InstanceNorm1d(8, affine=True),
        nn.InstanceNorm1d(3, affine=True),
        nn.LocalResponseNorm(2),
        nn.LayerNorm((4, 8)),
        ChannelsFirstNorm(8, True),
        ChannelsFirstNorm(3, True),
        RMSNormWithBuffer(8),
        LargerEpsNorm(8, eps=1e-6),
    ],
    ids=lambda norm: f"{type(norm).__name__}",
)
def test_refuses_every_other_norm_and_writes_to_nothing(norm):
    model = nn.Sequential(nn.LayerNorm(8), norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"'1' \({type(norm).__name__}\) looks like a norm"):
        replace_norms(model, "ibnorm-l")
    assert model[1] is norm and type(model[0]) is nn.LayerNorm and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_class_of_two_functions_is_tried_at_every_place():
    model = nn.Sequential(ChannelsFirstNorm(8, True), ChannelsFirstNorm(8, False))
    with pytest.raises(ValueError, match="'0' "):
        replace_norms(model, "layernorm")
    report = replace_norms(model, "layernorm", exclude=["0"])
    assert [r.path for r in report.replacements] == ["1"] and type(model[0]) is ChannelsFirstNorm


@pytest.mark.parametrize("change", ["assign", "convert", "to_empty"])
def test_restore_carries_what_stands_there(change):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    if change == "to_empty":
        model.to("meta")
    report = replace_norms(model, "ibnorm-l")
    if change == "assign":
        model.load_state_dict({k: torch.full_like(v, 7.0) for k, v in model.state_dict().items()}, assign=True)
    elif change == "to_empty":
        model.to_empty(device="cpu")
    else:
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            model.double()
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
    with torch.no_grad():
        model[1].weight.fill_(7)
    stands = model[1].weight
    restore_norms(model, report)
    assert type(model[1]) is nn.LayerNorm and model[1].weight is stands and model[1].weight[0] == 7
    assert {p.dtype for p in model.parameters()} == {torch.float64 if change == "convert" else torch.float32}


def test_a_norm_that_takes_a_gate_is_refused():
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 8, "num_heads": 8}
    mamba = AutoModel.from_config(Mamba2Config(**sizes, head_dim=8, n_groups=1, chunk_size=8))
    with pytest.raises(ValueError, match=r"'layers.0.mixer.norm' \(MambaRMSNormGated\) .* exclude="):
        replace_norms(mamba, "rmsnorm")
    before = mamba(torch.arange(8)[None])[0]
    assert len(replace_norms(mamba, "rmsnorm", exclude=["mixer.norm"])) == 2
    assert torch.equal(mamba(torch.arange(8)[None])[0], before)


def test_assert_norms_sees_a_patch_over_and_under_a_hook():
    hooks = pytest.importorskip("accelerate.hooks")
    for where in ("forward", "_old_forward"):
        model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
        replace_norms(model, "ibnorm-l")
        hooks.add_hook_to_module(model[1], hooks.ModelHook())
        assert_norms(model, "ibnorm-l")
        setattr(model[1], where, MethodType(lambda self, x: x, model[1]))
        with pytest.raises(RuntimeError, match="was replaced by other code"):
            assert_norms(model, "ibnorm-l")


def test_assert_norms_raises_no_false_alarm():
    model = nn.Sequential(ChannelsFirstNorm(8, True), nn.LayerNorm(8))
    assert_norms(model)
    replace_norms(model, "ibnorm-l", exclude=["0"])
    assert_norms(model, "ibnorm-l", exclude=["0"])
    with pytest.raises(RuntimeError, match="'0' is layernorm, expected ibnorm-l"):
        assert_norms(model, "ibnorm-l")
    model.config = MptConfig(norm_type="low_precision_layernorm")
    assert_norms(model)


def test_ours_are_built_after_liger_has_put_its_classes_into_llama(monkeypatch):
    class LigerRMSNorm(nn.Module):
        __module__ = "liger_kernel.transformers.rms_norm"

        def __init__(self, hidden_size, eps=1e-6):
            super().__init__()
            self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.ones(hidden_size)), eps, 0.0

        def forward(self, hidden_states):
            raise RuntimeError("0 active drivers")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm", LigerRMSNorm)
    model = IBNormLlamaForCausalLM(IBNormLlamaConfig(**SMALL))
    assert sum(isinstance(m, IBNorm) for m in model.modules()) == 5
    assert_norms(model, "ibnorm-l")
