# SPDX-License-Identifier: Apache-2.0
"""Runs small enough to be made in a second, with a cache of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ibnorm_hf.training import job
from ibnorm_hf.training.keys.recipe import load_recipe

ROOT = Path(__file__).parents[2]
TINY = f"""
model_type: ibnorm_llama
model: {{vocab_size: 300, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
  max_position_embeddings: 64}}
corpus: {ROOT / "LICENSE"}
block_size: 32
validation_fraction: 0.2
max_steps: 6
per_device_train_batch_size: 4
learning_rate: 3.0e-2
logging_steps: 3
eval_steps: 6
save_steps: 6
use_cpu: true
"""


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """``make_run("ibnorm-l", 1, "--key", value)``: the folder of a finished run, made once."""
    root, made = tmp_path_factory.mktemp("analysis"), {}
    (root / "tiny.yaml").write_text(TINY)

    def make(norm: str, seed: int, *words: Any, recipe: Path | None = None) -> Path:
        key = (norm, seed, *map(str, words), recipe)
        if key not in made:
            folder = root / f"run{len(made)}"
            given = ["--norm_type", norm, "--seed", str(seed), "--output_dir", str(folder), *map(str, words)]
            job.pretrain(load_recipe(recipe or root / "tiny.yaml", given))
            made[key] = folder
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IBNORM_CACHE", str(root / "cache"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield make
        torch.set_num_threads(threads)
