# SPDX-License-Identifier: Apache-2.0
"""What a shell proposes after the first letters."""

from pathlib import Path

import pytest

from ibnorm_hf.cli import _parser

ROOT = Path(__file__).parents[1]
argcomplete = pytest.importorskip("argcomplete", reason="the extra `completion` is not installed")


def proposed(*words: str) -> set[str]:
    finder = argcomplete.CompletionFinder(_parser(), always_complete_options=False)
    return {word.strip() for word in finder._get_completions(["ibnorm-hf", *words[:-1]], words[-1], "", None)}


def test_jobs_options_and_recipes_are_proposed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama.yaml").touch()
    assert proposed("pre") == {"pretrain", "prepare"}
    assert proposed("card", "--for") == {"--force"}
    assert {"llama/tiny", "llama/1b", "llama.yaml"} <= proposed("pretrain", "lla")
    sharded = {f"accelerate/{path.stem}" for path in (ROOT / "recipes" / "accelerate").glob("fs*.yaml")}
    assert proposed("recipes", "copy", "accelerate/fs") == sharded
