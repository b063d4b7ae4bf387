# SPDX-License-Identifier: Apache-2.0
"""Data sets on the Hub, with the library's own streams over local files in place of the network."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from ibnorm_hf.common import hub_commit
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.text import batches, packing
from ibnorm_hf.training.text import prepare as preparing
from ibnorm_hf.training.text.sources import hub as hub_module
from ibnorm_hf.training.text.sources.registry import open_source


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nobody is asked for a commit, unless a test says what the answer is."""
    hub_commit.resolve_commit.cache_clear()
    monkeypatch.setattr(hub_commit, "HfApi", lambda: SimpleNamespace())


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
        assert (name, config, streaming) == ("owner/name", "en", True)
        return real("json", data_files=files[split], split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return monkeypatch


def prepare(say=lambda text: None, recorded=None, **keys) -> preparing.PreparedData:
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
    return preparing.prepare_data(data, vocab_size=300, run_tokens=1600, say=say, recorded=recorded)


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
    hub.setattr(batches, "BATCH_CHARS", 300)
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


@pytest.fixture
def breaking(monkeypatch):
    """``breaking(error, times, at)``: 3,000 records, whose stream fails ``times`` times at record ``at``."""
    waits: list[float] = []
    monkeypatch.setattr(hub_module.time, "sleep", waits.append)

    def arm(error: Exception, times: int, at: int = 2500) -> list[float]:
        left = [times]

        def rows():
            for i in range(3000):
                if i == at and left[0]:
                    left[0] -= 1
                    raise error
                yield {"text": f"Record {i} counts {i**3}."}

        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows))
        return waits

    return arm


def read() -> list[str]:
    return [piece.text for piece, _ in open_source(DataArguments(corpus="owner/name")).pieces()]


@pytest.mark.parametrize("at", [0, 3, 2500])
def test_a_stream_that_breaks_off_is_taken_up_at_the_record_reached(breaking, at: int):
    waits = breaking(ConnectionError("Server Disconnected"), times=3, at=at)
    assert read() == [f"Record {i} counts {i**3}." for i in range(3000)]
    assert waits == [1, 2, 4]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ConnectionError("Server Disconnected"), 6),
        (TimeoutError("The read operation timed out"), 6),
        (FileNotFoundError("part-3.jsonl.gz"), 0),
        (ValueError("Couldn't cast id: string"), 0),
    ],
)
def test_a_stream_that_stays_broken_is_one_sentence_and_goes_on_later(breaking, monkeypatch, error, attempts):
    waits = breaking(error, times=10**9)
    monkeypatch.setattr(batches, "BATCH_CHARS", 3000)
    keys = {"token_budget": 80_000, "validation_fraction": 0.4}
    tokenizer = {"tokenizer_vocab_size": 257}
    breaking(error, times=0)
    whole = prepare(**keys, **tokenizer)
    kept = whole.train[:]["input_ids"].copy()
    whole.folder.rename(whole.folder.with_name(f"whole{attempts}{type(error).__name__}"))
    breaking(error, times=10**9)
    with pytest.raises(UserError, match=r"broke off after 2,500 records: .*; what was read is kept") as caught:
        prepare(**keys, **tokenizer)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value) and len(waits) == attempts
    breaking(error, times=0)
    said: list[str] = []
    resumed = prepare(**keys, **tokenizer, say=said.append)
    assert any("resuming a killed preparation" in line for line in said)
    assert np.array_equal(resumed.train[:]["input_ids"], kept)


class Api:
    """Stands for the Hub's own: a data set whose head is ``head``; None is no network."""

    head: str | None = "a" * 40

    def dataset_info(self, name, *, revision, timeout):
        if self.head is None:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=self.head)


def test_the_commit_is_resolved_recorded_and_part_of_the_key(hub, tmp_path: Path):
    hub.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    hub.setattr(hub_commit, "HfApi", Api)
    asked: list[str] = []
    load = datasets.load_dataset
    hub.setattr(datasets, "load_dataset", lambda *w, **k: (asked.append(k["revision"]), load(*w, **k))[1])

    def again(**keys):
        hub_commit.resolve_commit.cache_clear()
        return prepare(validation_split="validation", **keys)

    first = again()
    assert first.description["corpus"]["commit"] == "a" * 40 and set(asked) == {"a" * 40}
    hub.setattr(Api, "head", None)
    assert again().folder == first.folder  # the recorded one
    hub.setattr(Api, "head", "b" * 40)
    moved = again()
    assert moved.folder != first.folder and moved.description["corpus"]["commit"] == "b" * 40
    # A run that was begun with the first goes on with it.
    assert again(recorded=first.description["fingerprints"]).folder == first.folder
    assert again(corpus_revision="c" * 40).description["corpus"]["commit"] == "c" * 40
    hub_commit.resolve_commit.cache_clear()
