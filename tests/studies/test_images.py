# SPDX-License-Identifier: Apache-2.0
"""The studies on Fashion-MNIST start, on files of its form."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from ibnorm_hf.studies import plan
from ibnorm_hf.studies.compare import open_study

from .test_compare import Here

STUDIES = Path(__file__).resolve().parents[2] / "recipes" / "studies"


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


@pytest.fixture(scope="module")
def fashionable(tmp_path_factory):
    """Few images of 28 x 28 in the four files of Fashion-MNIST."""
    folder, draw = tmp_path_factory.mktemp("fashionable"), np.random.default_rng(0)
    for prefix, count in (("train", 80), ("t10k", 20)):
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return folder


@pytest.mark.parametrize("name", ["vit_fashion", "resnet_fashion"])
def test_a_study_of_images_starts(name, fashionable, tmp_path):
    content = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
    assert content["keys"]["images"] == "/usr/share/datasets/fashion-mnist"  # where Debian's package puts them
    content["base"] = str((STUDIES / content["base"]).resolve())
    content["keys"] |= {"images": str(fashionable), "max_steps": 2, "warmup_steps": 1, "eval_steps": 2, "save_steps": 2}
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    comparison = open_study(tmp_path / f"{name}.yaml", tmp_path / "out", Here(), lambda text: None)
    assert comparison.check() == []
    assert len({found.parameters for found in comparison.audits if found.arm != "dyt"}) == 1
    assert 70_000 < comparison.audits[0].parameters < 80_000
    runs = plan.noise_floor(comparison.study)[:1]
    comparison.make("noise floor", runs)
    (row,) = comparison.rows(runs)
    assert -100 <= row.value <= 0 and row.tokens == 2 * 64  # points, as costs; images
