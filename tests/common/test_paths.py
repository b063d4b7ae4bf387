# SPDX-License-Identifier: Apache-2.0
"""A cache that cannot be written is said before the work."""

import os

import pytest

from ibnorm_hf.cli import main
from tests.training.conftest import TINY


@pytest.mark.parametrize("mode", [[], ["--dry_run"]])
@pytest.mark.parametrize("kind", ["may not be written", "is no folder"])
def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys, kind, mode):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "cache").touch() if kind == "is no folder" else (tmp_path / "cache").mkdir()
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache" / "deeper"))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: "cache" not in str(path) and real(path, how))
    assert main(["pretrain", str(tmp_path / "tiny.yaml"), "--output_dir", str(tmp_path / "run"), *mode]) == 2
    err = capsys.readouterr().err
    assert f"cache {kind}; set IBNORM_CACHE to another folder" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
