# SPDX-License-Identifier: Apache-2.0
"""The embedded corpus: deterministic, without repetitions, made once. A small package stands for all of them."""

from pathlib import Path

import pytest

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.text import embedded


def test_prose_of_installed_packages(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGES", ("accelerate",))
    texts = []
    for name in ("one", "two"):
        monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / name))
        texts.append(embedded.embedded_corpus().read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    paragraphs = [p for p in texts[0].replace("\f", "").split("\n\n") if p.strip()]
    assert len(paragraphs) > 100
    assert len({p.strip() for p in paragraphs}) == len(paragraphs)
    assert not any(">>>" in p or "\n" in p.strip() for p in paragraphs)

    monkeypatch.setattr(embedded, "_extract", lambda *words: pytest.fail("made twice"))
    assert embedded.embedded_corpus().read_text(encoding="utf-8") == texts[1]


def test_no_docstrings_is_an_error(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match="hold no docstrings"):
        embedded.embedded_corpus()
