# SPDX-License-Identifier: Apache-2.0
"""What users import is pinned, and importing it is cheap and touches nobody else."""

import ast
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest

import ibnorm_hf

PUBLIC = """
DynamicTanh IBBatchNorm2d IBNorm IBNormGPT2Config IBNormGPT2ForQuestionAnswering IBNormGPT2ForSequenceClassification
IBNormGPT2ForTokenClassification IBNormGPT2LMHeadModel IBNormGPT2Model IBNormLlamaConfig IBNormLlamaForCausalLM
IBNormLlamaForQuestionAnswering IBNormLlamaForSequenceClassification IBNormLlamaForTokenClassification
IBNormLlamaModel
IBNormImageProcessor IBNormMistralConfig IBNormMistralForCausalLM IBNormMistralForQuestionAnswering
IBNormMistralForSequenceClassification IBNormMistralForTokenClassification IBNormMistralModel
IBNormResNetBackbone IBNormResNetConfig IBNormResNetForImageClassification IBNormResNetModel
IBNormViTConfig IBNormViTForImageClassification IBNormViTModel IBSyncBatchNorm2d NormalNorm RMSNorm __version__
assert_norms convert create_norm evaluate_perplexity export ib_norm list_norms load_recipe load_swapped pretrain
register_compression replace_norms restore_norms NormTelemetry
"""

NEW_PROCESS = """
import json, socket, sys, time
def refuse(*args, **kwargs):
    raise AssertionError("the network was touched")
socket.socket.connect = refuse
begin = time.perf_counter()
from transformers import LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING
mappings = (CONFIG_MAPPING, MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
vanilla = [set(m.keys()) for m in mappings]
before = set(sys.modules)
start = time.perf_counter()
host_seconds = start - begin
import ibnorm_hf
seconds = time.perf_counter() - start
import torch
added = [sorted(str(getattr(k, "model_type", k)) for k in set(m.keys()) - v) for m, v in zip(mappings, vanilla)]
from transformers import AutoModelForCausalLM, LlamaConfig
small = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
print(json.dumps({
    "seconds": seconds,
    "host_seconds": host_seconds,
    "added": added,
    "vanilla_class": type(AutoModelForCausalLM.from_config(small)).__name__,
    "heavy": [m for m in ("triton", "datasets", "peft", "lm_eval", "ibnorm_hf.cli") if m in set(sys.modules) - before],
    "cuda": torch.cuda.is_initialized(),
}))
"""

LOAD = """
import sys, torch
import ibnorm_hf
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
torch.save(model(torch.arange(20).view(2, 10)).logits.detach(), sys.argv[2])
"""


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def test_public_names_are_pinned_and_importable():
    later = set(ibnorm_hf.__all__) - set(PUBLIC.split())
    assert set(PUBLIC.split()) <= set(ibnorm_hf.__all__)
    assert all(ibnorm_hf._HOME[name].startswith("modeling.modeling_ibnorm_") for name in later)
    for name in ibnorm_hf.__all__:
        assert getattr(ibnorm_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ibnorm_hf.nonsense  # noqa: B018


def test_type_checkers_see_what_is_loaded_later():
    source = Path(ibnorm_hf.__file__).read_text()
    (block,) = (n for n in ast.parse(source).body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    seen = {node.module: tuple(alias.name for alias in node.names) for node in block.body}
    lazily = {k: v for k, v in ibnorm_hf._PUBLIC.items() if not k.startswith("modeling.modeling_ibnorm_")}
    assert seen == lazily


@pytest.mark.parametrize("name", ["convert", "evaluate_perplexity", "export", "load_recipe", "pretrain"])
def test_functions_say_what_they_take_give_and_raise(name):
    function = getattr(ibnorm_hf, name)
    hints = typing.get_type_hints(function)
    assert set(inspect.signature(function).parameters) | {"return"} <= set(hints) | {"flags"}
    text = inspect.getdoc(function)
    assert "Args:" in text and "Raises:" in text and "UserError" in text
    for parameter in inspect.signature(function).parameters:
        assert f"    {parameter}:" in text, parameter


@pytest.mark.parametrize(
    "words, name",
    [
        (["pretrain", "llama/tiny"], "pretrain"),
        (["convert", "a", "b", "--norm_type", "rmsnorm"], "convert"),
        (["export", "a", "b"], "export"),
        (["eval", "a", "--tasks", "perplexity", "--text", "t"], "_evaluate"),
    ],
)
def test_the_command_calls_the_same_functions(words, name, monkeypatch, tmp_path):
    """`_evaluate` is all that ``evaluate_perplexity`` does beside naming its options."""
    from ibnorm_hf import cli
    from ibnorm_hf.evaluation import command, perplexity
    from ibnorm_hf.hub import convert, export
    from ibnorm_hf.training import job

    class Called(Exception):
        pass

    def called(*args, **keys):
        raise Called

    module = {"pretrain": job, "convert": convert, "export": export, "_evaluate": perplexity}[name]
    monkeypatch.setattr(module, name, called)
    target = SimpleNamespace(output=tmp_path, pretrained="a", peft="an adapter")
    monkeypatch.setattr(command, "resolve", lambda given: target)
    with pytest.raises(Called):
        cli.main(words)
    if name == "_evaluate":
        monkeypatch.setattr(perplexity, "resolve", lambda given: target)
        with pytest.raises(Called):
            ibnorm_hf.evaluate_perplexity("a", text="t")


def test_import_is_cheap_and_leaves_vanilla_mappings_alone():
    seen = json.loads(run(NEW_PROCESS))
    ours = sorted(c.model_type for c in ibnorm_hf.registration._MODELS)
    assert seen["added"][0] == ours and seen["added"][1] == ours and set(seen["added"][2]) <= set(ours)
    assert seen["vanilla_class"] == "LlamaForCausalLM"
    assert seen["heavy"] == [] and not seen["cuda"]
    assert seen["seconds"] < 0.1 * seen["host_seconds"]  # of transformers' own import, in the same process


def test_a_model_made_by_auto_loads_bit_equal_in_another_process(tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "ibnorm_llama",
        norm_type="ibnorm-t",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=99,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    run(LOAD, str(tmp_path / "model"), str(tmp_path / "logits.pt"))
    there = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.equal(there, model(torch.arange(20).view(2, 10)).logits.detach())


@pytest.mark.parametrize("version", ["5.17.0", "5.20.2", "5.24.1"])
def test_tested_transformers_are_taken_without_a_word(version, recwarn):
    ibnorm_hf._check_transformers(version)
    assert not recwarn.list


@pytest.mark.parametrize("version", ["5.25.0", "5.31.2"])
def test_a_newer_minor_release_is_a_warning_that_names_what_was_tested(version):
    with pytest.warns(UserWarning, match=rf"was tested with transformers 5.17 to 5.24; {version} is installed"):
        ibnorm_hf._check_transformers(version)


@pytest.mark.parametrize("version", ["5.16.4", "4.57.0", "6.0.0"])
def test_transformers_that_cannot_work_are_refused_with_a_sentence(version):
    with pytest.raises(ImportError, match=rf"works with transformers >=5.17,<6, but {version} is installed"):
        ibnorm_hf._check_transformers(version)
