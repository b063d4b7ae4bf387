# SPDX-License-Identifier: Apache-2.0
"""Under PEFT the norms are found, swapped and set in every copy."""

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from ibnorm_hf import IBNorm, IBNormLlamaConfig, IBNormLlamaForCausalLM, assert_norms, replace_norms, restore_norms
from ibnorm_hf.modeling.replace import iter_norms, set_norm_lambda

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
NORMS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
}
PATHS = ["layers.0.input_layernorm", "layers.0.post_attention_layernorm"]
PATHS = [f"model.{path}" for path in (*PATHS, *(p.replace("0", "1") for p in PATHS), "norm")]
IDS = torch.arange(12).view(2, 6)


def vanilla(kind):
    """A model whose every parameter has a value that no initialization gives."""
    config = LlamaConfig(**LLAMA) if kind == "llama" else GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99)
    torch.manual_seed(0)
    return shaken(AutoModelForCausalLM.from_config(config).eval())


def shaken(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def wrapped(model, method):
    """Under PEFT, with the weights of the adapter moved away from those it started at."""
    norms = NORMS[model.config.model_type.removeprefix("ibnorm_")]
    config = LNTuningConfig(target_modules=norms)
    if method == "lora":
        gpt2 = "gpt2" in model.config.model_type
        config = LoraConfig(
            target_modules=["c_attn"] if gpt2 else ["q_proj", "v_proj"], modules_to_save=norms, fan_in_fan_out=gpt2
        )
    torch.manual_seed(1)
    model = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def logits_and_gradients(model):
    out = model(IDS).logits
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {"": out, **dict(zip(trained, torch.autograd.grad(out, trained.values(), cotangent), strict=True))}


@pytest.mark.parametrize("norm_type, norm_bias", [("ibnorm-t", None), ("dyt", True)])
@pytest.mark.parametrize("method", ["lora", "ln"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_wrap_then_replace_is_replace_then_wrap(kind, method, norm_type, norm_bias):
    options = {"norm_bias": norm_bias}
    if norm_type.startswith("ibnorm"):
        options |= {"norm_lambda": [0.5, 1, 2, 3, 4]}
    first, second = vanilla(kind), vanilla(kind)
    replace_norms(first, norm_type, **options)
    created = {name for name, _ in first.named_parameters()} - {name for name, _ in second.named_parameters()}
    first, second = wrapped(first, method), wrapped(second, method)
    report = replace_norms(second, norm_type, **options)
    assert len(report) == 5 and "5 norms are now" in str(report)
    for (name, there), here in zip(second.named_parameters(), first.parameters(), strict=True):
        assert there.shape == here.shape and there.requires_grad == here.requires_grad, name
    assert bool(created) == (norm_type == "dyt")
    second.load_state_dict(first.state_dict())  # what the swap created starts anew in the one, and moved in the other
    one, other = logits_and_gradients(first), logits_and_gradients(second)
    assert one.keys() == other.keys() and any("default.weight" in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert_norms(second, norm_type)


@pytest.mark.parametrize("method", ["lora", "ln"])
def test_a_norm_and_its_copy_are_one_norm(method):
    plain = vanilla("llama")
    assert [(path, len(modules)) for path, modules in iter_norms(plain)] == [(path, 1) for path in PATHS]
    model = wrapped(plain, method)
    assert [(path, len(modules)) for path, modules in iter_norms(model)] == [(path, 2) for path in PATHS]
    for _, (original, trained) in iter_norms(model):
        assert trained.weight.requires_grad and not original.weight.requires_grad
    report = replace_norms(model, "ibnorm-l", norm_lambda=[1, 2, 3], exclude=["model.norm", PATHS[2]])
    assert [r.path for r in report.replacements] == [PATHS[0], PATHS[1], PATHS[3]]
    assert [[m.norm_lambda for m in modules if isinstance(m, IBNorm)] for _, modules in iter_norms(model)] == [
        [1, 1],
        [2, 2],
        [],
        [3, 3],
        [],
    ]
    with pytest.raises(ValueError, match="lists 4 values, but the model has 5 norms"):
        replace_norms(model, "ibnorm-l", norm_lambda=[1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"exclude names 'modules_to_save\.default'"):
        replace_norms(model, "ibnorm-l", exclude=["modules_to_save.default"])


@pytest.mark.parametrize("method", ["lora", "ln"])
def test_restore_undoes_a_swap_made_before_or_after_wrapping(method):
    model = wrapped(vanilla("llama"), method)
    before, modules = logits(model), dict(model.named_modules())
    report = replace_norms(model, "ibnorm-s", norm_lambda=1)
    assert not torch.equal(logits(model), before)
    restore_norms(model, report)
    assert torch.equal(logits(model), before)
    assert all(module is modules[name] for name, module in model.named_modules())

    early = vanilla("llama")
    report = replace_norms(early, "ibnorm-s", norm_lambda=1)
    early = wrapped(early, method)
    restore_norms(early, report)
    assert torch.equal(logits(early), before)
    with pytest.raises(ValueError, match="nothing was restored"):
        restore_norms(early, report)


@pytest.mark.parametrize("method", ["lora", "ln"])
def test_assert_norms_names_a_patched_copy(method):
    model = wrapped(vanilla("llama"), method)
    replace_norms(model, "ibnorm-l")
    trained = dict(iter_norms(model))["model.norm"][1]
    trained.forward = trained.weight.mul
    with pytest.raises(RuntimeError, match=r"The forward of 'model.norm' \(IBNorm\) was replaced"):
        assert_norms(model)


@pytest.mark.parametrize("method", ["lora", "ln"])
def test_set_norm_lambda_reaches_every_copy_and_the_config(method):
    torch.manual_seed(0)
    base = IBNormLlamaForCausalLM(IBNormLlamaConfig(**LLAMA)).eval()
    model = wrapped(base, method)
    for given, written in ((2, 2.0), ([5, 4, 3, 2, 1], [5.0, 4.0, 3.0, 2.0, 1.0]), ([7] * 5, 7.0)):
        set_norm_lambda(model, given)
        each = written if isinstance(written, list) else [written] * 5
        assert [[m.norm_lambda for m in modules] for _, modules in iter_norms(model)] == [[v, v] for v in each]
        assert base.config.norm_lambda == written
    with pytest.raises(ValueError, match="lists 2 values, but the model has 5 IBNorms"):
        set_norm_lambda(model, [1, 2])
    with pytest.raises(ValueError, match="finite number above 0, got 0"):
        set_norm_lambda(model, [1, 2, 3, 4, 0])
    assert base.config.norm_lambda == 7.0 and {m.norm_lambda for _, ms in iter_norms(model) for m in ms} == {7.0}
    with pytest.raises(ValueError, match="LlamaForCausalLM has no IBNorm"):
        set_norm_lambda(vanilla("llama"), 1)
