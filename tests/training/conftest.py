# SPDX-License-Identifier: Apache-2.0
"""A run small enough to be made again and again: 2 layers of 32, the licence text, a second of training."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ibnorm_hf.training.keys.recipe import Recipe, load_recipe

LICENSE = Path(__file__).parents[2] / "LICENSE"
TINY = f"""
model_type: ibnorm_llama
model:
  vocab_size: 300
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 2
  num_attention_heads: 2
  max_position_embeddings: 64
corpus: {LICENSE}
block_size: 32
validation_fraction: 0.1
max_steps: 6
per_device_train_batch_size: 4
learning_rate: 1.0e-2
warmup_steps: 2
logging_steps: 3
eval_steps: 3
save_steps: 3
use_cpu: true
"""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for the whole session, away from the user's own."""
    before = os.environ.get("IBNORM_CACHE")
    os.environ["IBNORM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield Path(os.environ["IBNORM_CACHE"])
    if before is None:
        del os.environ["IBNORM_CACHE"]
    else:
        os.environ["IBNORM_CACHE"] = before


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Any:
    """Matrices of 32 x 32 gain nothing from threads, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def make_recipe(recipe_file: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """``make_recipe("--key", value, ...)``: the tiny recipe with overrides, in a fresh run folder."""

    def make(*words: Any) -> Recipe:
        given = [str(word) for word in words]
        if "--output_dir" not in given:
            given += ["--output_dir", str(tmp_path / "run")]
        return load_recipe(recipe_file, given)

    return make
