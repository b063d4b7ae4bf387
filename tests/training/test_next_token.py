# SPDX-License-Identifier: Apache-2.0
"""A model whose tokens see those that follow is not trained, scored or evaluated by next tokens, whoever asks."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ibnorm_hf import convert, evaluate_perplexity
from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.next_token import require_next_token

from ..hosts import CAUSAL, TEXT
from ..hub.models import sizes

ENCODERS = sorted(set(TEXT) - set(CAUSAL))
SENTENCE = "whose tokens see those that follow"


def test_there_are_encoders():
    assert "bert" in ENCODERS


@pytest.mark.parametrize("name", [kind for host in ENCODERS for kind in (host, f"ibnorm_{host}")])
@pytest.mark.parametrize("words", [[], ["--dry_run"]], ids=str)
def test_pretraining_is_refused_before_any_data(name, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(
        f"extends: base/run\nmodel_type: {name}\nmodel: {{num_hidden_layers: 1}}\ncorpus: embedded\ntokenizer: train\n"
    )
    assert main(["pretrain", "recipe.yaml", *words]) == 2
    assert f"key model_type: this is a {name}, {SENTENCE}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_of_one_are_not_trained_nor_scored(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_config(TEXT[name].vanilla(**sizes(f"ibnorm_{name}")))
    model.save_pretrained(tmp_path / "base")
    _tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "text.txt").write_text("w1 w2 w3 " * 20)
    words = ["--pretrained", "base", "--corpus", "text.txt", "--block_size", "16"]
    assert main(["finetune", "finetune/full", *words]) == 2
    assert f"base is a {name}, {SENTENCE}" in capsys.readouterr().err
    with pytest.raises(UserError, match=SENTENCE):
        convert(str(tmp_path / "base"), tmp_path / "converted", norm_type="ibnorm-l", text=tmp_path / "text.txt")
    assert not (tmp_path / "converted").exists()
    with pytest.raises(UserError, match=SENTENCE):
        evaluate_perplexity(str(tmp_path / "base"), text=tmp_path / "text.txt", output=tmp_path / "out")
    assert convert(str(tmp_path / "base"), tmp_path / "converted", norm_type="ibnorm-l").saved_as
    assert (tmp_path / "converted" / "README.md").exists()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_decoder_of_the_kind_is_taken(name):
    require_next_token(TEXT[name].vanilla(is_decoder=True), "it")
    require_next_token(TEXT[name].config(is_decoder=True), "it")


def test_no_causal_model_is_taken_for_one():
    refused = set()
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        try:
            require_next_token(AutoConfig.for_model(config.model_type), "it")
        except UserError:
            refused.add(config.model_type)
        except Exception:  # a config that does not stand by itself
            continue
    assert {"bert", "roberta", "electra", "ibnorm_bert"} <= refused
    assert not refused & {*CAUSAL, *(f"ibnorm_{name}" for name in CAUSAL), "bart", "opt", "qwen2", "gptj", "mamba"}


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w2")
