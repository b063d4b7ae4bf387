# SPDX-License-Identifier: Apache-2.0
"""Under PEFT our models behave as their hosts, and the norms are found, swapped and set in every copy."""

import os
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM, IA3Config, LNTuningConfig, LoraConfig, OSFConfig, get_peft_model
from peft.utils import constants
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification
from transformers.pytorch_utils import Conv1D

from ibnorm_hf import IBNorm, IBNormLlamaConfig, IBNormLlamaForCausalLM, assert_norms, replace_norms, restore_norms
from ibnorm_hf.modeling.lambdas import set_norm_lambda
from ibnorm_hf.modeling.recognize import iter_norms

from ..hosts import CAUSAL, HOSTS

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
PATHS = ["layers.0.input_layernorm", "layers.0.post_attention_layernorm"]
PATHS = [f"model.{path}" for path in (*PATHS, *(p.replace("0", "1") for p in PATHS), "norm")]
IDS = torch.arange(12).view(2, 6)


def vanilla(kind):
    """A model whose every parameter has a value that no initialization gives."""
    torch.manual_seed(0)
    return shaken(AutoModelForCausalLM.from_config(HOSTS[kind].vanilla(**HOSTS[kind].sizes())).eval())


def names_of_norms(model):
    """The last parts of the paths of its norms, as PEFT names modules."""
    return sorted({path.rpartition(".")[2] for path, _ in iter_norms(model)})


def shaken(model, size=0.2):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def wrapped(model, method):
    """Under PEFT, with the weights of the adapter moved away from those it started at."""
    config = LNTuningConfig(target_modules=names_of_norms(model))
    if method == "lora":
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        config = LoraConfig(
            target_modules="all-linear", modules_to_save=names_of_norms(model), fan_in_fan_out=transposed
        )
    torch.manual_seed(1)
    model = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def image_classifier(kind):
    sizes = HOSTS[kind.removeprefix("ibnorm_")].sizes()
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **sizes)).eval()


def ours(kind):
    model = vanilla(kind)
    sizes = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    registered = AutoModelForCausalLM.from_config(AutoConfig.for_model(f"ibnorm_{kind}", **sizes)).eval()
    registered.load_state_dict(model.state_dict())
    return registered


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def logits_and_gradients(model):
    out = model(IDS).logits
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    leaves = trained(model)
    return {"": out, **dict(zip(leaves, torch.autograd.grad(out, leaves.values(), cotangent), strict=True))}


@pytest.mark.parametrize("config", [LoraConfig, LNTuningConfig, IA3Config, OSFConfig])
@pytest.mark.parametrize("kind", CAUSAL)
def test_default_modules_are_the_hosts(kind, config):
    def found(model):
        try:
            return list(trained(get_peft_model(model, config())))
        except ValueError as error:  # PEFT has no default for every host and method
            return str(error)

    hosts = found(vanilla(kind))
    assert found(ours(kind)) == hosts and (kind not in ("llama", "gpt2") or isinstance(hosts, list))


@pytest.mark.parametrize(
    "config, modules, count",
    [
        (LoraConfig, "q_proj v_proj", 8),
        (LNTuningConfig, "layernorm_before layernorm_after layernorm", 10),
        (IA3Config, "k_proj v_proj fc2", 6),
        (OSFConfig, "q_proj k_proj v_proj o_proj fc1 fc2", 36),
    ],
)
def test_default_modules_of_vit(config, modules, count):
    model = get_peft_model(image_classifier("ibnorm_vit"), config())
    assert model.active_peft_config.target_modules == set(modules.split()) and len(trained(model)) == count


def test_resnet_has_no_default_modules_as_its_host():
    for kind in ("resnet", "ibnorm_resnet"):
        with pytest.raises(ValueError, match="Please specify `target_modules`"):
            get_peft_model(image_classifier(kind), LNTuningConfig())


def test_default_modules_need_no_order_of_imports_and_leave_a_users_alone(monkeypatch):
    known = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    model = ours("llama")
    monkeypatch.delitem(known, "ibnorm_llama", raising=False)  # as if PEFT were imported now
    get_peft_model(model, LoraConfig())
    assert known["ibnorm_llama"] == known["llama"]
    monkeypatch.setitem(known, "ibnorm_llama", ["o_proj"])
    assert get_peft_model(ours("llama"), LoraConfig()).active_peft_config.target_modules == {"o_proj"}


def test_gpt2s_transposed_weights_are_recognised():
    config = LoraConfig(init_lora_weights=False)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="Setting fan_in_fan_out to True"):
        model = get_peft_model(ours("gpt2"), config).eval()
    assert config.fan_in_fan_out
    torch.manual_seed(1)
    told = get_peft_model(ours("gpt2"), LoraConfig(init_lora_weights=False, fan_in_fan_out=True)).eval()
    before = logits(model)
    assert torch.equal(before, logits(told)) and not torch.allclose(before, logits(ours("gpt2")), atol=1e-2)
    torch.testing.assert_close(logits(model.merge_and_unload()), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_type, norm_bias", [("ibnorm-t", None), ("dyt", True), ("gatednorm", None)])
@pytest.mark.parametrize("method", ["lora", "ln"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_wrap_then_replace_is_replace_then_wrap(kind, method, norm_type, norm_bias):
    options = {"norm_bias": norm_bias}
    first, second = vanilla(kind), vanilla(kind)
    count = len(list(iter_norms(first)))
    if norm_type.startswith("ibnorm"):
        options |= {"norm_lambda": [0.5 + number for number in range(count)]}
    replace_norms(first, norm_type, **options)
    created = {name for name, _ in first.named_parameters()} - {name for name, _ in second.named_parameters()}
    first, second = wrapped(first, method), wrapped(second, method)
    report = replace_norms(second, norm_type, **options)
    assert len(report) == count >= 5 and f"{count} norms are now" in str(report)
    for (name, there), here in zip(second.named_parameters(), first.parameters(), strict=True):
        assert there.shape == here.shape and there.requires_grad == here.requires_grad, name
    assert bool(created) == (norm_type in ("dyt", "gatednorm"))
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
    for _, (original, tuned) in iter_norms(model):
        assert tuned.weight.requires_grad and not original.weight.requires_grad
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
    tuned = dict(iter_norms(model))["model.norm"][1]
    tuned.forward = tuned.weight.mul
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


WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
import torch
import ibnorm_hf
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert type(model).__name__ == "IBNormLlamaForCausalLM" and model.model.norm.norm_lambda == 2.5
torch.save(model(torch.arange(12).view(2, 6)).logits.detach(), sys.argv[2])
"""


@pytest.mark.parametrize("method", ["lora", "ln"])
def test_trained_saved_loaded_and_merged(method, tmp_path):
    sizes = LLAMA | {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3}
    base = shaken(IBNormLlamaForCausalLM(IBNormLlamaConfig(**sizes, norm_lambda=2.5)).eval(), 0.01)
    base.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(modules_to_save=names_of_norms(model)) if method == "lora" else LNTuningConfig()
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(model, config)
    starts = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, starts[name]) != p.requires_grad for name, p in model.named_parameters())
    model.eval().save_pretrained(tmp_path / "adapter")
    # The base has hardly any vocabulary, which only makes its file smaller.
    weights = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 0.02 * weights

    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert isinstance(again.get_base_model(), IBNormLlamaForCausalLM)
    assert {m.norm_lambda for _, modules in iter_norms(again) for m in modules} == {2.5}
    adapted = logits(model)
    assert torch.equal(logits(again), adapted)

    tuned = [modules[1].weight.detach().clone() for _, modules in iter_norms(again)]
    merged = again.merge_and_unload()
    norms = list(iter_norms(merged))
    assert [path for path, _ in norms] == list(dict(iter_norms(base)))
    assert all(len(modules) == 1 for _, modules in norms)
    assert all(torch.equal(modules[0].weight, weight) for (_, modules), weight in zip(norms, tuned, strict=True))
    torch.testing.assert_close(logits(merged), adapted, rtol=0, atol=0 if method == "ln" else 1e-5)
    merged.save_pretrained(tmp_path / "merged")
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as there:
        assert set(there.keys()) == set(base.state_dict())
    command = [sys.executable, "-c", WITHOUT_PEFT, str(tmp_path / "merged"), str(tmp_path / "logits.pt")]
    # As many threads as here: sums split otherwise round otherwise.
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(merged))
