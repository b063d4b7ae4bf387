# SPDX-License-Identifier: Apache-2.0
"""What an export holds, what it refuses, and what --verify finds."""

import json
import shutil
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_imports

import ibnorm_hf
from ibnorm_hf import IBNormLlamaConfig, IBNormLlamaForCausalLM
from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.hub import export as exports
from ibnorm_hf.hub.code import require_closed
from ibnorm_hf.hub.convert import convert
from ibnorm_hf.hub.export import export, verify
from ibnorm_hf.modeling import compression

from .models import build, heads

# transformers refuses remote code whose imports are not installed; these are, wherever transformers and torch are.
INSTALLED = {"torch", "transformers", "huggingface_hub"}


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
    return export(trained_run, tmp_path_factory.mktemp("exports") / "one", max_shard_size="8KB")


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def flip_bit(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_an_export_of_a_run_is_complete_and_sharded(exported, trained_run):
    names = {path.name for path in exported.iterdir()}
    assert {"checksums.json", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert {"modeling_ibnorm_llama.py", "configuration_ibnorm.py", "functional.py", "compression.py"} <= names
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) > 2 and all((exported / name).stat().st_size < 12_000 for name in shards)
    assert not any(name.endswith((".pt", ".bin")) or "optimizer" in name for name in names)
    assert not (exported / "LICENSE").exists()  # its owner has named none, and ours is not theirs
    config = json.loads((exported / "config.json").read_text())
    assert config["ibnorm_version"] == ibnorm_hf.__version__
    assert config["auto_map"]["AutoConfig"] == "configuration_ibnorm.IBNormLlamaConfig"
    assert config["auto_map"]["AutoModel"] == "modeling_ibnorm_llama.IBNormLlamaModel"
    assert "AutoModelForSequenceClassification" in config["auto_map"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (exported / name).read_bytes() == (trained_run / "model" / name).read_bytes()
    assert AutoTokenizer.from_pretrained(exported)("w5 w6")["input_ids"] == [5, 6]


def test_exporting_twice_gives_the_same_bytes(exported, trained_run, tmp_path):
    again = export(trained_run, tmp_path / "again", max_shard_size="8KB")
    assert (again / "checksums.json").read_bytes() == (exported / "checksums.json").read_bytes()


@pytest.mark.parametrize("head", list(heads(every=False)), ids=lambda head: head[2].__name__)
def test_exported_code_needs_nothing_that_may_be_missing(head, tmp_path):
    config_class, _, cls = head
    build(config_class, cls).save_pretrained(tmp_path / "model")
    folder = export(tmp_path / "model", tmp_path / "export")
    for path in folder.glob("*.py"):
        assert set(get_imports(path)) <= INSTALLED | sys.stdlib_module_names, path.name
    reference = json.loads((folder / "config.json").read_text())["auto_map"]
    assert {r.partition(".")[0] for r in reference.values()} <= {path.stem for path in folder.glob("*.py")}


def test_code_that_would_not_travel_stops_the_export(tmp_path):
    (tmp_path / "norms.py").write_text("from . import compression\n")
    (tmp_path / "compression.py").write_text("")
    with pytest.raises(RuntimeError, match=r"from \. import compression.*norms\.py"):
        require_closed(tmp_path)
    (tmp_path / "norms.py").write_text("def f():\n    from .fused import g\n")
    with pytest.raises(RuntimeError, match=r"from \.fused import g"):
        require_closed(tmp_path)
    (tmp_path / "norms.py").write_text("from .compression import g\n")
    require_closed(tmp_path)


def test_an_export_checks_its_code_before_it_appears(run, tmp_path, monkeypatch):
    def save(model, target):
        (target / "norms.py").write_text("from . import compression\n")

    monkeypatch.setattr(exports, "custom_object_save", save)
    with pytest.raises(RuntimeError, match="does not travel with it"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dtype_is_kept_and_a_vanilla_model_exports_without_code(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    folder = export(tmp_path / "model", tmp_path / "export")
    assert not list(folder.glob("*.py")) and "auto_map" not in json.loads((folder / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16 and torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert verify(folder)[0].endswith("files match checksums.json")


# ---- verify ------------------------------------------------------------------------------------------------------


def test_verify_passes_and_names_what_was_damaged(copy, capsys):
    assert main(["export", "--verify", str(copy)]) == 0
    assert "files match checksums.json" in capsys.readouterr().out
    shards = sorted(copy.glob("*.safetensors"))
    flip_bit(shards[0])
    shards[1].write_bytes(shards[1].read_bytes()[:-3])
    (copy / "norms.py").unlink()
    (copy / "extra.py").write_text("x = 1\n")
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    (copy / ".gitattributes").write_text("* -text\n")  # added by the Hub to every repository
    assert main(["export", "--verify", str(copy)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert f"{shards[0].name} does not match its checksum" in message
    size = shards[1].stat().st_size
    assert f"{shards[1].name} has {size} bytes instead of {size + 3}" in message
    assert "norms.py is missing" in message and "extra.py is not in checksums.json" in message
    assert "pytorch_model.bin is not in checksums.json, and is refused: it is a pickle, which can run" in message
    assert ".gitattributes" not in message


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "checksums.json is unreadable"),
        ('{"files": []}', "its list of files is unreadable"),
        ('{"files": {"../../etc/passwd": {"bytes": 1, "sha256": "00"}}}', "it names ../../etc/passwd, outside"),
        ('{"files": {"/etc/passwd": {"bytes": 1, "sha256": "00"}}}', "it names /etc/passwd, outside"),
    ],
)
def test_verify_does_not_trust_its_own_list(copy, content, message, capsys):
    (copy / "checksums.json").write_text(content)
    assert main(["export", "--verify", str(copy)]) == 2
    assert message in capsys.readouterr().err


def test_verify_says_how_older_code_differs(copy):
    for name in ("compression.py", "checksums.json"):
        shutil.copy(copy / name, copy.parent / name)
    source = (copy / "compression.py").read_text()
    assert "return torch.tanh(u)" in source
    rewrite(copy, "compression.py", source.replace("return torch.tanh(u)", "return torch.tanh(1.001 * u)"))
    lines = verify(copy)
    assert f"exported by ibnorm_hf 0.0.9, this is {ibnorm_hf.__version__}" in lines[1]
    assert lines[2].strip() == "compression.py: _tanh"
    # Comments and docstrings compute nothing.
    rewrite(copy, "compression.py", source.replace('"""', '"""Older. ', 1) + "# an older comment\n")
    assert len(verify(copy)) == 1


def rewrite(folder, name, text):
    """An export of an older version: other code, and checksums that fit it."""
    from ibnorm_hf.common.listing import CHECKSUMS, write_listing

    (folder / name).write_text(text)
    write_listing(folder, CHECKSUMS, {"made_with": {"ibnorm_hf": "0.0.9"}})


# ---- refusals ----------------------------------------------------------------------------------------------------


def refusal(capsys, *arguments):
    code = main(["export", *map(str, arguments)])
    message = capsys.readouterr().err
    assert code and message.startswith("error: ") and message.count("\n") == 1
    return code, message


def test_a_pickle_is_refused_and_says_why(run, tmp_path, capsys):
    weights = run / "model" / "model.safetensors"
    torch.save({}, run / "model" / "pytorch_model.bin")
    weights.unlink()
    code, message = refusal(capsys, run, tmp_path / "out")
    assert code == 2 and "pytorch_model.bin is refused: it is a pickle, which can run any code" in message
    (run / "model" / "pytorch_model.bin").unlink()
    assert "holds no weights" in refusal(capsys, run, tmp_path / "out")[1]
    assert not (tmp_path / "out").exists()


def test_sources_that_cannot_be_exported(run, tmp_path, capsys):
    target = tmp_path / "out"
    assert "is no folder" in refusal(capsys, tmp_path / "nowhere", target)[1]
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in refusal(capsys, tmp_path / "empty", target)[1]
    config = run / "model" / "config.json"
    good = config.read_text()
    config.write_text(good.replace("ibnorm-t", "ibnorm-tt"))
    assert "Did you mean 'ibnorm-t'" in refusal(capsys, run, target)[1]
    config.write_text(good.replace('"hidden_size": 16', '"hidden_size": 32'))
    assert "cannot be loaded" in refusal(capsys, run, target)[1]
    config.write_text(good.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    assert "weights and config.json disagree (unexpected keys: model.layers.1." in refusal(capsys, run, target)[1]
    config.write_text(good.replace("IBNormLlamaForCausalLM", "os.system"))
    assert "architecture 'os.system' is neither ours nor" in refusal(capsys, run, target)[1]
    config.unlink()
    code, message = refusal(capsys, run, target)
    assert code == 2 and "is not finished" in message and "checkpoint-20" in message
    assert not target.exists()


def test_a_damaged_source_and_a_taken_target_are_refused(copy, run, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep")
    assert "not empty" in refusal(capsys, run, tmp_path / "taken")[1]
    assert (tmp_path / "taken" / "mine.txt").read_text() == "keep"
    flip_bit(sorted(copy.glob("*.safetensors"))[0])
    code, message = refusal(capsys, copy, tmp_path / "out")
    assert code == 1 and "does not match its checksum" in message
    assert "needs two folders" in refusal(capsys, run)[1]
    assert "takes one folder" in refusal(capsys, run, "--verify", copy)[1]


def test_a_tokenizer_that_does_not_fit_is_refused(run, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    tokenizer.add_tokens([f"x{n}" for n in range(10)])
    tokenizer.save_pretrained(run / "model")
    with pytest.raises(UserError, match=r"tokenizer of .* has 70 entries, the model only 64"):
        export(run, tmp_path / "out")


def test_a_tokenizer_with_holes_is_judged_by_its_largest_id(run, tmp_path):
    """Three words, one of which has an id that the model has no row for."""
    tokenizer = Tokenizer(models.WordLevel({"<|end|>": 0, "w1": 1, "w2": 64}, unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(run / "model")
    with pytest.raises(UserError, match=r"has 3 entries with ids up to 64, the model only 64 rows"):
        export(run, tmp_path / "out")
    assert "has 3 entries with ids up to 64" in refusal_of_convert(run, tmp_path)


def refusal_of_convert(run, tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2 w1")
    with pytest.raises(UserError) as caught:
        convert(str(run / "model"), tmp_path / "converted", norm_type="ibnorm-l", text=tmp_path / "text.txt")
    return str(caught.value)


def test_a_compression_of_ones_own_cannot_travel(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "_REGISTRY", dict(compression._REGISTRY))
    ibnorm_hf.register_compression("mine", lambda u: torch.atan(u), lambda u, s: 1 / (1 + u * u))
    build(IBNormLlamaConfig, IBNormLlamaForCausalLM, norm_type="mine").save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=f"'mine' is registered by {__name__}, whose code an export cannot carry"):
        export(tmp_path / "model", tmp_path / "out")
