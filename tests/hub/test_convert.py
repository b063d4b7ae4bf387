# SPDX-License-Identifier: Apache-2.0
"""Conversion of pretrained models: what is carried, measured, saved and refused."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ibnorm_hf import assert_norms
from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.hub.convert import convert
from ibnorm_hf.modeling.configuration_ibnorm import NormFlags
from ibnorm_hf.modeling.recognize import iter_norms, norm_name

from ..foreign import FOREIGN
from ..hosts import CAUSAL

CONFIGS = {name: host.vanilla(**host.sizes()) for name, host in CAUSAL.items()}
CONFIGS[FOREIGN] = CONFIG_MAPPING[FOREIGN](**CAUSAL["llama"].sizes(head_dim=None))
IDS = torch.arange(3, 23).view(2, 10)


def make_vanilla(folder, kind, auto=AutoModelForCausalLM, tokenizer=True):
    torch.manual_seed(0)
    model = auto.from_config(CONFIGS[kind]).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in ("norm", "ln_")):
                p.add_(torch.randn_like(p) / 4)
    model.save_pretrained(folder)
    if tokenizer:
        words = Tokenizer(models.WordLevel({"end" if i == 2 else f"w{i}": i for i in range(99)}, unk_token="w0"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end").save_pretrained(folder)
    return model


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{(7 * i * i) % 99}" for i in range(200)), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_hosts_own_norm_keeps_logits_and_nll(tmp_path, text, kind):
    vanilla = make_vanilla(tmp_path / "vanilla", kind)
    # Qwen2's tokenizer is rebuilt from merges, which the words of this test have not: nothing would be scored.
    scored = None if kind == "qwen2" else text
    done = convert(str(tmp_path / "vanilla"), tmp_path / "out", norm_type=CAUSAL[kind].norm, text=scored)
    assert done.before == done.after and (scored is None or done.tokens == 199)
    assert "the norms compute what they computed before" in done.lines()
    with torch.no_grad():
        assert torch.equal(
            AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(IDS).logits, vanilla(IDS).logits
        )


def test_gpt2_at_a_huge_lambda_keeps_its_logits(tmp_path):
    vanilla = make_vanilla(tmp_path / "vanilla", "gpt2")
    convert(str(tmp_path / "vanilla"), tmp_path / "out", norm_type="ibnorm-l", norm_lambda=1e6)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert_norms(converted, "ibnorm-l")
    with torch.no_grad():
        torch.testing.assert_close(converted(IDS).logits, vanilla(IDS).logits, rtol=0, atol=1e-4)


def test_the_console_script_saves_dtype_and_generation_settings_too(tmp_path):
    """In a process of its own: under this name `import ibnorm_hf` alone registers nothing."""
    make_vanilla(tmp_path / "vanilla", "llama")
    source = AutoModelForCausalLM.from_pretrained(tmp_path / "vanilla", dtype=torch.bfloat16)
    source.generation_config.update(eos_token_id=[2, 7], do_sample=True, temperature=0.3)
    source.save_pretrained(tmp_path / "vanilla")
    code = "import sys; from ibnorm_hf_command import main; sys.exit(main())"
    command = ["convert", str(tmp_path / "vanilla"), str(tmp_path / "out"), "--norm_type", "ibnorm-l"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert converted.dtype == torch.bfloat16 and type(converted).__name__ == "IBNormLlamaForCausalLM"
    assert converted.generation_config.eos_token_id == [2, 7] and converted.generation_config.temperature == 0.3


def test_report_measurement_and_lambdas_are_kept(tmp_path, text, capsys):
    make_vanilla(tmp_path / "vanilla", "llama")
    command = ["convert", str(tmp_path / "vanilla"), str(tmp_path / "out"), "--norm_type", "IBNorm_T"]
    assert main([*command, "--norm_lambda", "1", "2", "3", "4", "5", "--text", str(text)]) == 0
    printed = capsys.readouterr().out
    assert "computes another function" in printed and "as IBNormLlamaForCausalLM" in printed
    kept = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert kept["nll_before"] != kept["nll_after"] and kept["tokens"] == 199
    assert f"NLL {kept['nll_before']:.4f} -> {kept['nll_after']:.4f}" in printed
    assert len(kept["replacements"]) == 5 and "without centring" in kept["replacements"][0]["change"]
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert converted.config.norm_lambda == [1, 2, 3, 4, 5]
    assert converted.model.norm.norm_lambda == 5


def test_every_flag_of_a_norm_has_its_option(tmp_path):
    make_vanilla(tmp_path / "vanilla", "llama")
    words = {
        "norm_type": ["ibnorm-t"],
        "norm_lambda": ["2"],
        "norm_order": ["standardize-first"],
        "norm_affine": ["false"],
        "norm_bias": ["false"],
        "norm_lambda_learned": ["true"],
        "norm_depth_scale": ["sqrt"],
        "norm_scope": ["pre-mlp", "pre-attention"],
        "norm_exclude": ["layers.0.*"],
    }
    # A factor on embeddings that were trained without it would only break them.
    assert set(words) == {f.name for f in fields(NormFlags)} - {"norm_embedding_scale"}
    command = [word for flag, values in words.items() for word in (f"--{flag}", *values)]
    assert main(["convert", str(tmp_path / "vanilla"), str(tmp_path / "out"), *command]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    config = model.config
    assert (config.norm_lambda, config.norm_order, config.norm_affine) == (2, "standardize-first", False)
    assert (config.norm_lambda_learned, config.norm_depth_scale) == (True, "sqrt")
    assert config.norm_scope == ["pre-mlp", "pre-attention"] and config.norm_exclude == ["layers.0.*"]
    swapped = [path for path, modules in iter_norms(model) if norm_name(modules[0]) == "ibnorm-t"]
    assert swapped == [f"model.layers.1.{name}_layernorm" for name in ("input", "post_attention")]
    assert all(model.get_submodule(path).output_scale == 0.5**0.5 for path in swapped)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--norm_scope", "pre-atention"], "Unknown norm_scope 'pre-atention'"),
        (["--norm_exclude", "q_nrm"], "exclude names 'q_nrm', but LlamaForCausalLM has no such norm"),
        (["--norm_depth_scale", "root"], "Unknown norm_depth_scale 'root'"),
        (["--norm_affine", "maybe"], "'maybe' is neither true nor false"),
    ],
    ids=str,
)
def test_a_flag_outside_its_domain_is_one_sentence(words, said, tmp_path, capsys):
    make_vanilla(tmp_path / "vanilla", "llama")
    command = ["convert", str(tmp_path / "vanilla"), str(tmp_path / "out"), "--norm_type", "ibnorm-l", *words]
    try:
        code = main(command)
    except SystemExit as error:
        code = error.code
    assert code == 2 and said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_two_kinds_of_norms_that_one_config_cannot_say_are_refused(tmp_path):
    make_vanilla(tmp_path / "vanilla", "llama")
    convert(str(tmp_path / "vanilla"), tmp_path / "first", norm_type="ibnorm-l")
    with pytest.raises(
        UserError, match=r"layers\.0\.input_layernorm' is IBNorm.* cannot say beside norm_type layernorm"
    ):
        convert(str(tmp_path / "first"), tmp_path / "out", norm_type="layernorm", norm_scope="final")
    convert(str(tmp_path / "vanilla"), tmp_path / "scaled", norm_type="rmsnorm", norm_depth_scale="sqrt")
    convert(str(tmp_path / "scaled"), tmp_path / "again", norm_type="ibnorm-l")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert again.config.norm_depth_scale == "sqrt" and again.model.layers[1].input_layernorm.output_scale == 0.5**0.5


def test_heads_are_converted_as_what_they_are(tmp_path):
    vanilla = make_vanilla(tmp_path / "vanilla", "llama", AutoModelForSequenceClassification)
    done = convert(str(tmp_path / "vanilla"), tmp_path / "out", norm_type="ibnorm-l")
    assert done.saved_as == "IBNormLlamaForSequenceClassification" and done.before is None
    assert any("NLL not measured" in line for line in done.lines())
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(again.score.weight, vanilla.score.weight)


def test_an_architecture_without_registered_type_is_measured_and_not_saved(tmp_path, text, capsys):
    make_vanilla(tmp_path / "vanilla", FOREIGN)
    command = ["convert", str(tmp_path / "vanilla"), str(tmp_path / "out"), "--norm_type", "ibnorm-l"]
    assert main([*command, "--text", str(text)]) == 2
    printed = capsys.readouterr()
    assert "5 norms are now ibnorm-l" in printed.out and "NLL" in printed.out
    assert "has no registered type" in printed.err and not (tmp_path / "out").exists()


def test_refusals_are_one_sentence(tmp_path, text):
    make_vanilla(tmp_path / "vanilla", "llama", tokenizer=False)
    source = str(tmp_path / "vanilla")
    for options, message in (
        ({"norm_type": "ibnrm-l"}, "Did you mean 'ibnorm-l'"),
        ({"norm_type": "ibnorm-l", "norm_lambda": -1.0}, "norm_lambda must be a finite number above 0"),
        ({"norm_type": "ibnorm-l", "norm_lambda": [1.0, 2.0]}, "lists 2 values, but the model has 5 norms"),
        ({"norm_type": "ibnorm-l", "text": text}, "needs a tokenizer"),
    ):
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / "out", **options)
    with pytest.raises(UserError, match="exists; choose a new folder"):
        convert(source, tmp_path / "vanilla", norm_type="ibnorm-l")
    with pytest.raises(UserError, match="cannot be loaded"):
        convert(str(tmp_path / "nowhere"), tmp_path / "out", norm_type="ibnorm-l")
    assert not (tmp_path / "out").exists()
