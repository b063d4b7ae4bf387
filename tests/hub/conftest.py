# SPDX-License-Identifier: Apache-2.0
"""A tiny run folder, as training leaves it: made here, because hub knows runs by their files alone."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ibnorm_hf import IBNormLlamaConfig, IBNormLlamaForCausalLM

from .models import build

RECIPE = {
    "model": {"hidden_size": 16},
    "model_type": "ibnorm_llama",
    "norm_type": "ibnorm-t",
    "norm_lambda": None,
    "corpus": "embedded",
    "block_size": 32,
    "max_steps": 20,
    "learning_rate": 0.003,
    "global_batch_size": 4,
    "seed": 7,
    "output_dir": "/home/somebody/secret/runs/one",
}
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "ibnorm_hf": "0.1.0", "torch": "2.13.0+cpu", "absent": None},
    "hardware": {"machine": "x86_64", "cpu_cores": 2, "memory_gib": 23.5, "system": "Linux", "torch_threads": 2},
    "processes": 1,
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "seed": 7,
    "command": ["/home/somebody/secret/recipes/pretrain.py", "/home/somebody/secret/recipes/llama/tiny.yaml"],
}
DATA = {
    "corpus": {"kind": "files", "path": "/home/somebody/.cache/corpus.txt", "files": 1, "bytes_on_disk": 123456},
    "documents": 321,
    "fingerprints": {"source": "ab" * 32, "tokenizer": "cd" * 32, "blocks": "ef" * 12},
    "train": {"tokens": 64000, "bytes_per_token": 3.5},
    "validation": {"tokens": 6400, "bytes_per_token": 3.6, "sha256": "12" * 32},
}
VALIDATION = {"loss": 4.125, "perplexity": 61.868, "bits_per_byte": 1.653, "tokens": 6200, "tokens_seen": 2560}
VALIDATION |= {"step": 20, "seed": 7, "blocks": 200, "sha256": "12" * 32}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "one"
    build(IBNormLlamaConfig, IBNormLlamaForCausalLM, norm_type="ibnorm-t").save_pretrained(run / "model")
    vocabulary = {"<|end|>": 0, **{f"w{n}": n for n in range(1, 60)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(run / "model")
    write(run / "config.yaml", yaml.safe_dump(RECIPE, sort_keys=False))
    write(run / "environment.json", ENVIRONMENT)
    write(run / "data.json", DATA)
    write(run / "eval" / "validation.json", VALIDATION)
    write(run / "eval" / "sample.txt", "The w1 w2\n")
    lines = [{"step": s, "loss": 5 - s / 20, "lr": 1e-3, "tokens": s * 128, "tokens_per_s": 999.0} for s in (10, 20)]
    write(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(run / "loss.png", "PNG\n")
    write(run / "checkpoint-20" / "optimizer.pt", "moments")
    return run


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(trained_run, tmp_path / "runs" / "one")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The tests' own Hub is asked whatever the environment says; another is refused by its name."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
