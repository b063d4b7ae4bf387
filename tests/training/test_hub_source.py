# SPDX-License-Identifier: Apache-2.0
"""Data sets on the Hub, with the library's own streams over local files in place of the network."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.text import packing
from ibnorm_hf.training.text import prepare as preparing


@pytest.fixture
def hub(tmp_path: Path, monkeypatch):
    """A data set `owner/name` with a training split of three files and a validation split."""
    for number in range(3):
        lines = [json.dumps({"text": f"Train {number * 100 + i} counts {i**3}."}) for i in range(100)]
        (tmp_path / f"train-{number}.jsonl").write_text("\n".join([*lines, json.dumps({"text": ""})]) + "\n")
    lines = [json.dumps({"text": f"Held {i} counts {i**3}."}) for i in range(50)]
    (tmp_path / "held.jsonl").write_text("\n".join(lines) + "\n")
    files = {"train": sorted(map(str, tmp_path.glob("train-*.jsonl"))), "validation": str(tmp_path / "held.jsonl")}
    real = datasets.load_dataset

    def load(name, config, *, split, revision, streaming):
        assert (name, config, revision, streaming) == ("owner/name", "en", None, True)
        return real("json", data_files=files[split], split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return monkeypatch


def prepare(**keys) -> preparing.PreparedData:
    data = DataArguments(
        **{
            "corpus": "owner/name",
            "corpus_config": "en",
            "block_size": 16,
            "validation_tokens": 320,
            "tokenizer_vocab_size": 300,
            **keys,
        }
    )
    return preparing.prepare_data(data, vocab_size=300, run_tokens=1600, say=lambda text: None)


def test_the_validation_split_is_the_data_sets_own(hub):
    prepared = prepare(validation_split="validation")
    train, held = (
        prepared.tokenizer.decode(np.concatenate(part[:]["input_ids"]))
        for part in (prepared.train, prepared.validation)
    )
    assert "Held" in held and "Train" not in held
    assert "Train" in train and "Held" not in train
    # The default budget is what the run consumes.
    assert prepared.description["train"]["tokens"] == 1600
    assert prepared.description["validation"]["tokens"] == 320


def test_a_killed_stream_goes_on_where_it_was(hub):
    hub.setattr(packing, "BATCH_CHARS", 300)
    hub.setattr(packing, "SHARD_TOKENS", 400)
    keys = {"token_budget": 4000, "validation_split": "validation", "block_size": 8}
    whole = prepare(**keys)
    finished = {part: getattr(whole, part)[:]["input_ids"].copy() for part in ("train", "validation")}
    whole.folder.rename(whole.folder.with_name("kept"))
    real, calls = packing.Packer._write, []

    def dying(self, *words):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        real(self, *words)

    hub.setattr(packing.Packer, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(**keys)
    calls[:] = [1] * 50
    resumed = prepare(**keys)
    for part, blocks in finished.items():
        assert np.array_equal(getattr(resumed, part)[:]["input_ids"], blocks)
    assert resumed.description["bad_records"]["count"] == whole.description["bad_records"]["count"] > 0


def test_a_missing_column_names_those_there_are(hub):
    with pytest.raises(UserError, match="has no column 'body'"):
        prepare(text_column="body")
