# SPDX-License-Identifier: Apache-2.0
"""A classifier that is read out of a run's folder."""

from pathlib import Path

import pytest

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.listing import MANIFEST, write_listing
from ibnorm_hf.evaluation.robustness_chart import judge_classifier


def test_a_damaged_model_is_named_before_it_is_read(tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "config.yaml").write_text("model_type: ibnorm_vit\n")
    (model / "config.json").write_text('{"model_type": "ibnorm_vit"}')
    (model / "model.safetensors").write_bytes(b"weights")
    write_listing(model, MANIFEST, {})
    (model / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors"):
        judge_classifier(tmp_path, None, [], None, batch_size=1)
    assert not (tmp_path / "eval").exists()
