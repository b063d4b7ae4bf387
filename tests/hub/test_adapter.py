# SPDX-License-Identifier: Apache-2.0
"""Adapters leave as whole models: merged, complete, and loading where neither peft nor ibnorm_hf is."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import AutoPeftModelForCausalLM, LNTuningConfig, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ibnorm_hf.cli import main
from ibnorm_hf.hub.card import write_card
from ibnorm_hf.hub.export import export, verify
from ibnorm_hf.hub.push import push

from .models import build, heads
from .test_elsewhere import run_jobs

NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
CONFIGS = {
    "lora": LoraConfig(init_lora_weights=False, modules_to_save=NORMS, task_type="CAUSAL_LM"),
    "ln": LNTuningConfig(task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
}
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")


@pytest.fixture
def adapter_run(run, tmp_path):
    """A function that makes a run of an adapter on top of the run ``one``, as fine-tuning leaves it."""

    def make(kind):
        torch.manual_seed(3)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(run / "model"), copy.deepcopy(CONFIGS[kind]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        made = shutil.copytree(run, tmp_path / "runs" / "two")
        for path in (made / "model").glob("*"):
            if not path.name.startswith("tokenizer"):
                path.unlink()
        model.save_pretrained(made / "model")
        return made

    return make


@pytest.mark.parametrize("kind", ["lora", "ln"])
def test_an_adapter_is_exported_whole_and_loads_elsewhere(kind, adapter_run, run, tmp_path, capsys):
    made = adapter_run(kind)
    assert main(["export", str(made), str(tmp_path / "export")]) == 0
    exported = tmp_path / "export"
    assert "files match checksums.json" in verify(exported)[0]
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "modeling_ibnorm_llama.py", "peft_targets.py", "tokenizer.json"} <= names
    assert not any("adapter" in name for name in names) and "README.md" not in names
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "ibnorm_llama" and config["norm_type"] == "ibnorm-t"
    assert set(load_file(exported / "model.safetensors")) == set(load_file(run / "model" / "model.safetensors"))
    assert (exported / "tokenizer.json").read_bytes() == (made / "model" / "tokenizer.json").read_bytes()

    adapted = AutoPeftModelForCausalLM.from_pretrained(made / "model").eval()
    ids = torch.randint(1, 64, (2, 7), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": ids}, tmp_path / "input")
    job = {"auto": "AutoModelForCausalLM", "folder": str(exported), "input": str(tmp_path / "input")}
    answers = run_jobs(tmp_path, [job | {"output": str(tmp_path / "output")}])
    assert answers[0]["module"].startswith("transformers_modules.")
    there = load_file(tmp_path / "output")["logits"]
    with torch.no_grad():
        torch.testing.assert_close(there, adapted(ids).logits, rtol=0, atol=1e-5)
        assert torch.equal(there, adapted.merge_and_unload()(ids).logits)
        base = AutoModelForCausalLM.from_pretrained(run / "model").eval()
        assert (there - base(ids).logits).abs().max() > 1e-2


def test_an_adapter_folder_takes_what_it_lacks_from_its_base(adapter_run, run, tmp_path):
    folder = adapter_run("lora") / "model"
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (run / "model" / "LICENSE").write_text("the base's own")
    exported = export(folder, tmp_path / "export")
    assert (exported / "tokenizer.json").read_bytes() == (run / "model" / "tokenizer.json").read_bytes()
    assert (exported / "LICENSE").read_text() == "the base's own"


def test_push_publishes_the_merged_model_with_a_card_that_names_the_base(adapter_run, run, tmp_path, capsys):
    made = adapter_run("lora")
    pushed = push(made, "me/two", dry_run=True, say=lambda line: None)
    assert {"README.md", "model.safetensors", "loss.png"} <= set(pushed.files)
    assert not any("adapter" in name for name in pushed.files)
    exported = export(made, tmp_path / "export")
    card = ModelCard.load(write_card(made, target=exported))
    assert "Made from `model`, whose licence goes on." in card.text and card.data.license is None
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(run / "model").parameters())
    assert f"{parameters:,}" in card.text and str(tmp_path) not in card.content
    assert main(["card", str(made)]) == 2
    assert "holds a PEFT adapter, and a card describes a whole model" in capsys.readouterr().err


def refusal(capsys, *arguments):
    code = main(["export", *map(str, arguments)])
    message = capsys.readouterr().err
    assert code == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert not arguments[1].exists()
    return message


def test_adapters_that_cannot_be_exported(adapter_run, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    made, target = adapter_run("lora"), tmp_path / "out"
    config, weights = made / "model" / "adapter_config.json", made / "model" / "adapter_model.safetensors"
    good, tensors = json.loads(config.read_text()), load_file(weights)

    def name_base(name):
        config.write_text(json.dumps({**good, "base_model_name_or_path": name}))

    name_base(None)
    assert "names no base model" in refusal(capsys, made, target)
    name_base("/gone/base")
    assert "the base model /gone/base of adapter" in refusal(capsys, made, target)
    name_base("somebody/gone")
    assert "somebody/gone cannot be loaded" in refusal(capsys, made, target)
    for itself in (str(made), str(made / "model")):
        name_base(itself)
        assert f"adapter {made / 'model'} names itself as its base model" in refusal(capsys, made, target)
    other = shutil.copytree(made / "model", tmp_path / "other")
    name_base(str(other))
    assert "is an adapter itself" in refusal(capsys, made, target)
    config.write_text("{")
    assert "adapter_config.json is unreadable" in refusal(capsys, made, target)
    config.write_text(json.dumps({**good, "peft_type": "NONSENSE"}))
    assert "cannot be loaded" in refusal(capsys, made, target)
    name_base(good["base_model_name_or_path"])

    norm, lacking = (next(name for name in sorted(tensors) if part in name) for part in ("norm", "lora_A"))
    save_file({name: tensor for name, tensor in tensors.items() if name != norm}, weights)
    assert f"cannot be loaded: it lacks '{norm}'" in refusal(capsys, made, target)
    save_file({name: tensor for name, tensor in tensors.items() if name != lacking}, weights)
    assert f"does not fit its base model: {lacking} is in only one" in refusal(capsys, made, target)
    save_file({**tensors, "base_model.model.extra": torch.ones(1)}, weights)
    assert "base_model.model.extra is in only one" in refusal(capsys, made, target)
    save_file({**tensors, lacking: torch.full_like(tensors[lacking], torch.nan)}, weights)
    assert "cannot be loaded" in refusal(capsys, made, target)
    weights.write_bytes(b"broken")
    assert "cannot be loaded" in refusal(capsys, made, target)
    weights.unlink()
    assert "no adapter_model.safetensors file is there" in refusal(capsys, made, target)
    torch.save(tensors, made / "model" / "adapter_model.bin")
    assert "adapter_model.bin is refused: it is a pickle" in refusal(capsys, made, target)
    save_file(tensors, weights)
    (run / "model" / "model.safetensors").unlink()
    assert "holds no weights" in refusal(capsys, made, target)


def test_an_adapter_that_is_no_weights_is_refused(adapter_run, tmp_path, capsys):
    assert "(PROMPT_TUNING) cannot be merged" in refusal(capsys, adapter_run("prompt"), tmp_path / "out")


DEFAULTS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ibnorm_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
from peft import LNTuningConfig, LoraConfig, get_peft_model
assert get_peft_model(model, LoraConfig()).active_peft_config.target_modules == {"q_proj", "v_proj"}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model = get_peft_model(model, LNTuningConfig())
print(sum(p.requires_grad for p in model.parameters()))
"""


def test_exported_code_knows_its_default_modules_without_ibnorm_hf(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    exported = export(run, tmp_path / "export")
    command = [sys.executable, "-c", DEFAULTS, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "5"


@pytest.mark.parametrize("family", ["ibnorm_llama", "ibnorm_gpt2"])
@pytest.mark.parametrize("changed", ["output", "embedding", "both"])
def test_lora_on_a_tied_matrix_exports_what_was_trained(family, changed, tmp_path):
    """Merged into weights that two matrices share, it would change both: loss 5.79 to 9.18, with exit 0."""
    config_class, cls = next((c, m) for c, auto, m in heads() if c.model_type == family and "CausalLM" in auto.__name__)
    base = build(config_class, cls, norm_type="ibnorm-t", tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    embedding = "embed_tokens" if family == "ibnorm_llama" else "wte"
    targets = {"output": ["lm_head"], "embedding": [embedding], "both": ["lm_head", embedding]}[changed]
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    ids = torch.randint(1, 64, (2, 7), generator=torch.Generator().manual_seed(1))
    exported = export(tmp_path / "adapter", tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(exported).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_export_that_computes_something_else_is_not_kept(adapter_run, tmp_path, monkeypatch, capsys):
    from ibnorm_hf.hub import adapter

    made = adapter_run("lora")
    true = adapter.probe
    monkeypatch.setattr(adapter, "probe", lambda model: true(model) * 1.01)
    assert main(["export", str(made), str(tmp_path / "out")]) == 1
    assert "computes something else than the trained model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
