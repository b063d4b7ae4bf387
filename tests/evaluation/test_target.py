# SPDX-License-Identifier: Apache-2.0
"""What can be evaluated, where its results go, and one line for what cannot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.listing import MANIFEST, write_listing
from ibnorm_hf.evaluation.target import resolve

from .conftest import Place, write_results
from .models import VOCABULARY


@pytest.fixture
def run(models: Callable, tmp_path: Path) -> Path:
    """A run folder without data: config.yaml, model/ and a checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(models("ibnorm_llama"), folder / "model")
    shutil.copytree(models("ibnorm_llama"), folder / "checkpoint-40")
    (folder / "config.yaml").write_text("seed: 1\n")
    return folder


def test_where_results_go(run: Path, models: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(run)).pretrained == str(run / "model")
    assert resolve(str(run)).output == resolve(str(run / "model")).output == run / "eval"
    assert resolve(str(run / "checkpoint-40")).output == run / "eval" / "checkpoint-40"
    monkeypatch.chdir(run)
    assert resolve("model").run == run
    target = resolve(str(models("llama")))
    assert target.run is None and target.output == run / "eval" / "llama"
    hub = resolve("org/name")
    assert hub.pretrained == "org/name" and hub.output == run / "eval" / "org__name"


def test_the_fingerprint_follows_weights_config_and_tokenizer_only(run: Path) -> None:
    before = resolve(str(run)).fingerprint()
    (run / "model" / "README.md").write_text("a card")
    assert resolve(str(run)).fingerprint() == before
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        path = run / "model" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"!")
        assert resolve(str(run)).fingerprint() != before, name
        path.write_bytes(content)


def test_what_is_no_model_gets_one_line(refused: Callable, run: Path, models: Callable, tmp_path: Path) -> None:
    def line(path: Path | str) -> str:
        return refused("eval", path, "--tasks", "leaderboard_musr")

    assert "does not exist" in line("/no/such/model") and "does not exist" in line("./nowhere")
    assert "is a file" in line(run / "config.yaml")
    (tmp_path / "empty").mkdir()
    assert "neither a run (config.yaml) nor a model (config.json)" in line(tmp_path / "empty")
    shutil.rmtree(run / "model")
    assert f"run {run} has no model/ yet; evaluate {run / 'checkpoint-40'}" in line(run)
    shutil.copytree(models("ibnorm_llama"), tmp_path / "untold")
    (tmp_path / "untold" / "model.safetensors").unlink()
    assert "holds no weights" in line(tmp_path / "untold")
    assert "name the model first" in refused("eval", "--tasks", "leaderboard")


def test_no_tokenizer_gets_one_line(refused: Callable, place: Place, models: Callable, tmp_path: Path) -> None:
    model = shutil.copytree(models("ibnorm_llama"), tmp_path / "model")
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer in" in refused("eval", model, "--tasks", "leaderboard_musr")
    (tmp_path / "empty").mkdir()
    words = ("--data", place.data, "--tasks", "leaderboard_musr", "--model_args", f"tokenizer={tmp_path / 'empty'}")
    assert f"tokenizer of {tmp_path / 'empty'} cannot be loaded" in refused("eval", models("llama"), *words)


def test_a_name_that_is_neither_folder_nor_reachable_gets_one_line(refused: Callable, place: Place) -> None:
    line = refused("eval", "nobody/nothing", "--data", place.data, "--tasks", "leaderboard_musr")
    assert "nobody/nothing, which is no folder here, cannot be loaded" in line


def test_damaged_weights_get_one_line(refused: Callable, place: Place, models: Callable, tmp_path: Path) -> None:
    model = shutil.copytree(models("ibnorm_llama"), tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be loaded" in refused("eval", model, "--data", place.data, "--tasks", "leaderboard_musr")


def test_a_tokenizer_larger_than_the_embedding_is_refused_before_the_first_forward(
    refused: Callable, place: Place, models: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(models("ibnorm_gpt2"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(model)
    monkeypatch.setattr(torch.nn.Module, "__call__", _no_forward)
    line = refused("eval", model, "--data", place.data, "--tasks", "leaderboard_musr")
    assert f"has {VOCABULARY + 1} entries and the model's embedding {VOCABULARY} rows" in line


def test_a_tokenizer_with_holes_is_judged_by_its_largest_id(models: Callable) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    from ibnorm_hf.evaluation.harness_model import IBNormLM

    model = AutoModelForCausalLM.from_pretrained(models("ibnorm_llama"))
    words = Tokenizer(WordLevel({"<|end|>": 0, "w": VOCABULARY}, unk_token="<|end|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>")
    with pytest.raises(UserError, match=f"has 2 entries with ids up to {VOCABULARY} and the model's embedding"):
        IBNormLM(model, tokenizer=tokenizer)


def _no_forward(self: object, *args: object, **kwargs: object) -> None:
    raise AssertionError("a forward pass was run")


@pytest.fixture
def adapter(models: Callable, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    base = models("ibnorm_llama")
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_applied_to_its_base(adapter: Path, models: Callable) -> None:
    from ibnorm_hf.evaluation.harness_model import IBNormLM

    target = resolve(str(adapter))
    assert target.pretrained == str(models("ibnorm_llama")) and target.peft == str(adapter)
    adapted, base = IBNormLM(str(adapter)), IBNormLM(str(models("ibnorm_llama")))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        gap = (adapted.model(ids).logits - base.model(ids).logits).abs().max()
    assert gap > 1e-2
    assert adapted.batch_size == 64 and str(adapted.device) == "cpu" and adapted.backend == "causal"


def test_a_run_is_measured_in_its_own_precision(run: Path, adapter: Path, models: Callable, tmp_path: Path) -> None:
    from ibnorm_hf.evaluation.harness_model import IBNormLM
    from ibnorm_hf.evaluation.runner import _precision

    ids = torch.arange(20)[None]
    plain = IBNormLM(str(run))
    assert _precision(plain) == {"dtype": "float32", "autocast": None}
    (run / "config.yaml").write_text("seed: 1\nbf16: true\n")
    mixed = IBNormLM(str(run))
    assert _precision(mixed) == {"dtype": "float32", "autocast": "bfloat16"}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = plain.model(ids).logits
    assert torch.equal(mixed._model_call(ids), wanted) and not torch.equal(plain._model_call(ids), wanted)
    asked = IBNormLM(str(run), dtype="bfloat16", mixed_precision_dtype=None)
    assert _precision(asked) == {"dtype": "bfloat16", "autocast": None}
    # A run trains an adapter on its base in float32, whatever that is stored in.
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(models("ibnorm_llama"), dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(models("ibnorm_llama")).save_pretrained(half)
    shutil.rmtree(run / "model")
    shutil.copytree(adapter, run / "model")
    path = run / "model" / "adapter_config.json"
    write_results(path, {**json.loads(path.read_text()), "base_model_name_or_path": str(half)})
    (run / "config.yaml").write_text("seed: 1\n")
    assert _precision(IBNormLM(str(run))) == {"dtype": "float32", "autocast": None}


def test_an_adapter_without_base_gets_one_line(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text())
    write_results(path, {**content, "base_model_name_or_path": None})
    with pytest.raises(UserError, match="names no base model"):
        resolve(str(adapter))
    write_results(path, {**content, "base_model_name_or_path": "/gone/base"})
    with pytest.raises(UserError, match=r"/gone/base of adapter .* does not exist"):
        resolve(str(adapter))
    write_results(path, {**content, "base_model_name_or_path": str(adapter)})
    with pytest.raises(UserError, match=r"names itself as its base model; correct adapter_config\.json"):
        resolve(str(adapter))
    shutil.copytree(adapter, adapter.parent / "other")
    write_results(path, {**content, "base_model_name_or_path": str(adapter.parent / "other")})
    with pytest.raises(UserError, match="is an adapter itself; export it first"):
        resolve(str(adapter))


def test_a_base_of_the_hub_is_loaded_at_the_commit_it_was_trained_on(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    write_results(path, {**json.loads(path.read_text()), "base_model_name_or_path": "owner/base"})
    before = resolve(str(adapter))
    assert before.revision is None and "revision" not in before.model_args
    write_listing(adapter, MANIFEST, {"pretrained_commit": "c" * 40})
    target = resolve(str(adapter))
    assert target.model_args["revision"] == "c" * 40 and target.fingerprint() != before.fingerprint()


def test_automatic_batches_on_a_cpu_stay_within_a_gigabyte_of_logits(models: Callable) -> None:
    from ibnorm_hf.evaluation.harness_model import IBNormLM

    folder = models("ibnorm_gpt2")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert IBNormLM(model, tokenizer=tokenizer, max_length=2**18).batch_size == 2
    assert IBNormLM(model, tokenizer=tokenizer, max_batch_size=5).batch_size == 5
    assert IBNormLM(model, tokenizer=tokenizer, batch_size=3).batch_size == 3
