# SPDX-License-Identifier: Apache-2.0
"""The studies of the package: each can be read, starts, and refuses nothing before it has begun."""

from pathlib import Path

import pytest
import yaml

from ibnorm_hf.common.study import read_report
from ibnorm_hf.studies.compare import open_study
from ibnorm_hf.studies.definition import read_definition

from .test_compare import Here

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.yaml"))
TEXT = [path for path in STUDIES if "fashion" not in path.stem]
SMALL = {  # what every text study is shrunk to here
    **{"corpus": str(ROOT / "LICENSE"), "block_size": 16, "validation_tokens": 64, "validation_fraction": 0.1},
    **{"max_steps": 2, "warmup_steps": 1, "global_batch_size": 2, "per_device_train_batch_size": 2},
}
SIZES = {
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 300},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300},
}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_package_can_be_read(path):
    study = read_definition(path)
    # Fewer than five seeds are refused a ranking; a study that only makes runs for others to read says so.
    assert study.base.is_file() and (len(study.claim_seeds) >= 5 or "No ranking" in path.read_text())


@pytest.mark.parametrize("path", TEXT, ids=lambda path: path.stem)
def test_every_text_study_starts_and_its_arms_differ_in_their_norms_alone(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    content["base"] = str((path.parent / content["base"]).resolve())
    kind = "gpt2" if "gpt2" in path.stem else "llama"
    content["keys"] = {**content.get("keys", {}), **SMALL, "model": SIZES[kind]}
    (tmp_path / path.name).write_text(yaml.safe_dump(content, sort_keys=False))
    comparison = open_study(tmp_path / path.name, tmp_path / "out", Here(), lambda text: None)
    assert comparison.check() == []
    found = {(audit.loss, audit.gradient_norm, audit.parameters) for audit in comparison.audits}
    assert len(found) >= len(comparison.audits) - 2  # the arms' keys reach the model; at lambda 1e8 two are LayerNorm


@pytest.mark.parametrize("path", TEXT, ids=lambda path: path.stem)
def test_an_ablation_at_the_rate_tuned_for_a_variant_has_that_rate(path):
    tuned = ROOT / "model_cards" / "studies" / "llama_tiny" / "report.json"
    study = read_definition(path)
    if study.tuned or "llama_tiny.yaml" not in path.read_text():
        return
    rate = yaml.safe_load(study.base.read_text())["learning_rate"]
    if not tuned.is_file():
        assert rate == 3e-3  # of the grid of llama_tiny.yaml; its report is not here
        return
    arms = read_report(tuned)["arms"]
    assert {arms[name]["learning_rate"] for name in ("ibnorm-l", "ibnorm-t")} == {rate}
