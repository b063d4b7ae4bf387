# SPDX-License-Identifier: Apache-2.0
"""Local data, tiny models and a command line that leaves the session's offline flags and caches as they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ibnorm_hf import cli
from ibnorm_hf.evaluation.bounds import LEAVES

from . import offline_data
from .models import TEXT, save_model

SHORT = ("--limit", "2", "--gen_kwargs", "max_gen_toks=16", "--batch_size", "32")

RECIPE = """
model_type: {kind}
model:
  vocab_size: 300
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 2
  num_attention_heads: 2
corpus: {text}
block_size: 32
validation_fraction: 0.2
max_steps: 4
per_device_train_batch_size: 4
learning_rate: 1.0e-2
warmup_steps: 1
logging_steps: 2
eval_steps: 4
save_steps: 4
use_cpu: true
"""


@dataclass
class Place:
    """Where a session keeps its data, models and Hugging Face cache."""

    root: Path
    data: Path

    @property
    def environment(self) -> dict[str, str]:
        """For subprocesses: no network, and no data sets' cache shared with this process."""
        ours = {"HF_HOME": str(self.root / "hf"), "NLTK_DATA": str(self.root / "nltk")}
        return {**os.environ, **ours, "IBNORM_CACHE": str(self.root / "ibnorm"), "HF_HUB_OFFLINE": "1"}

    def run(self, *words: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=cwd or self.root, env=self.environment, capture_output=True, text=True, timeout=timeout
        )


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("evaluation")
    offline_data.make_sentence_model(root / "nltk", TEXT)
    return Place(root, offline_data.make_data(root / "data"))


@pytest.fixture(scope="session")
def models(place: Place) -> Callable[..., Path]:
    """``models("ibnorm_llama")``: a model folder, made once."""

    def make(kind: str) -> Path:
        folder = place.root / kind
        return folder if folder.is_dir() else save_model(kind, folder)

    return make


@pytest.fixture(scope="session")
def trained(place: Place) -> Path:
    """A run trained for four steps by the training room's own command."""
    recipe = place.root / "recipe.yaml"
    text = Path(__file__).parents[2] / "LICENSE"
    recipe.write_text(RECIPE.format(kind="ibnorm_llama", text=text))
    folder = place.root / "run"
    with without_network(place):
        assert cli.main(["pretrain", str(recipe), "--output_dir", str(folder)]) == 0
    return folder


@contextmanager
def without_network(place: Place) -> Iterator[None]:
    """In this process: no network, this session's caches, and everything back as it was."""
    import datasets.config
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", place.root / "cache")
        patch.setenv("IBNORM_CACHE", str(place.root / "ibnorm"))
        patch.chdir(place.root)
        yield
        datasets.enable_progress_bars()


@pytest.fixture
def offline(place: Place) -> Iterator[None]:
    with without_network(place):
        yield


@pytest.fixture
def command(offline: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``command("eval", ...)`` -> (exit code, stdout, stderr) of the `ibnorm-hf` program, in this process."""

    def call(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def refused(command: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """The one line that a mistake gets, after checking that it is one line with exit code 2."""

    def call(*words: Any) -> str:
        code, out, err = command(*words)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(errors) == 1 and "Traceback" not in err, (code, out, err)
        return errors[0]

    return call


def make_results(raw: float = 0.5, n: int = 100, **changed: float) -> dict[str, Any]:
    """A results file of the harness with every leaf at ``raw``, or at ``changed[leaf]``."""
    out: dict[str, Any] = {key: {} for key in ("results", "versions", "n-shot", "n-samples")}
    for task, leaf in LEAVES.items():
        value = changed.get(task, raw)
        row: dict[str, Any] = {"alias": task}
        for metric in leaf.metrics:
            row[f"{metric},none"] = value
            row[f"{metric}_stderr,none"] = "N/A" if metric.startswith("inst") else (value * (1 - value) / n) ** 0.5
        out["results"][task] = row
        out["versions"][task] = leaf.version
        out["n-shot"][task] = leaf.shots
        out["n-samples"][task] = {"original": leaf.documents, "effective": n}
    return {**out, "config": {"limit": None}, "model_name": "made/up"}


def write_results(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
