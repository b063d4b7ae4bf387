# SPDX-License-Identifier: Apache-2.0
"""Packing: right tokens, disjoint validation, reuse, resumption after a kill, and refusals."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.text import batches, packing
from ibnorm_hf.training.text import prepare as preparing
from ibnorm_hf.training.text.blocks import BlockWriter, blocks_sha256, load_blocks
from ibnorm_hf.training.text.tidy import tidy_cache
from ibnorm_hf.training.text.tokenizer import END_OF_TEXT, train_bpe


def corpus(folder: Path, documents: int = 400) -> Path:
    path = folder / "docs.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"Document {i} tells of {i * i} things."}) + "\n" for i in range(documents))
    )
    return path


def prepare(path: Path, **keys) -> preparing.PreparedData:
    defaults = {"block_size": 16, "validation_fraction": 0.1, "validation_tokens": 10_000, "tokenizer_vocab_size": 300}
    return preparing.prepare_data(
        DataArguments(corpus=str(path), **{**defaults, **keys}), vocab_size=300, run_tokens=1000, say=lambda text: None
    )


def text_of(prepared: preparing.PreparedData, part: str) -> str:
    blocks = getattr(prepared, part)
    return prepared.tokenizer.decode(np.concatenate([row["input_ids"] for row in blocks]))


def test_every_document_is_in_exactly_one_part(tmp_path: Path):
    prepared = prepare(corpus(tmp_path))
    parts = {part: text_of(prepared, part).split(END_OF_TEXT) for part in ("train", "validation")}
    expected = [f"Document {i} tells of {i * i} things." for i in range(400)]
    # The unfinished last block of each part is dropped, so its last document may be cut.
    train, validation = parts["train"][:-1], parts["validation"][:-1]
    assert not set(train) & set(validation)
    assert set(train) | set(validation) <= set(expected)
    assert len(train) + len(validation) >= 395
    held = [expected.index(text) for text in validation]
    assert 20 <= len(held) <= 80
    # Held out in contiguous pieces, several of them.
    gaps = sum(b != a + 1 for a, b in itertools.pairwise(held))
    assert 1 <= gaps <= len(held) // 3


def test_bytes_per_token_counts_the_text(tmp_path: Path):
    prepared = prepare(corpus(tmp_path))
    description = prepared.description["train"]
    text = text_of(prepared, "train")
    ends = text.count(END_OF_TEXT)
    measured = (len(text) - ends * len(END_OF_TEXT)) / description["tokens"]
    assert description["bytes_per_token"] == pytest.approx(measured, rel=0.01)


def test_prepared_once_and_found_again(tmp_path: Path, monkeypatch):
    first = prepare(corpus(tmp_path))
    monkeypatch.setattr(preparing, "_materialize", lambda *a: pytest.fail("prepared twice"))
    again = prepare(tmp_path / "docs.jsonl")
    assert again.folder == first.folder
    assert blocks_sha256(again.validation) == first.description["validation"]["sha256"]
    with pytest.raises(pytest.fail.Exception):
        prepare(tmp_path / "docs.jsonl", block_size=8)


def test_token_budget_is_a_bound(tmp_path: Path):
    prepared = prepare(corpus(tmp_path), token_budget=1000)
    assert prepared.description["train"]["tokens"] == 1000 // 16 * 16
    assert len(prepared.validation) >= 1


def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path, monkeypatch):
    path = corpus(tmp_path)
    monkeypatch.setattr(batches, "BATCH_CHARS", 500)
    monkeypatch.setattr(packing, "SHARD_TOKENS", 800)
    whole = prepare(path, validation_tokens=9_000)
    assert len(whole.description["train"]["shards"]) > 4

    # The same text elsewhere has the same key: forget the finished one, and kill the next after 8 batches.
    finished = {part: getattr(whole, part)[:]["input_ids"].copy() for part in ("train", "validation")}
    kept = whole.folder.rename(tmp_path / "kept")
    write, calls = packing.Packer._write, []

    def dying(self, *words):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        write(self, *words)

    monkeypatch.setattr(packing.Packer, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(path, validation_tokens=9_000)
    calls[:] = [1] * 100
    resumed = prepare(path, validation_tokens=9_000)
    assert 0 < len(calls) - 100 < 30  # fewer batches than the whole
    for part, blocks in finished.items():
        assert np.array_equal(getattr(resumed, part)[:]["input_ids"], blocks)
    for key in ("documents", "train", "validation", "bad_records"):
        assert resumed.description[key] == json.loads((kept / "data.json").read_text())[key]


@pytest.mark.parametrize("content", [b"", b"\n\n\n", b'{"text": ""}\n'])
def test_an_empty_corpus_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"empty\.jsonl' holds no text"):
        prepare(path)


def test_a_corpus_smaller_than_a_block_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="too small"):
        prepare(corpus(tmp_path, documents=3), block_size=512)


def test_a_damaged_shard_is_refused(tmp_path: Path):
    prepared = prepare(corpus(tmp_path), validation_tokens=8_000)
    shard = prepared.folder / prepared.description["train"]["shards"][0]["file"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"train-00000\.arrow is missing or damaged"):
        prepare(tmp_path / "docs.jsonl", validation_tokens=8_000)
    shard.write_bytes(content)


def test_tokenizer_larger_than_the_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"has 320 entries but model\.vocab_size is 300"):
        prepare(corpus(tmp_path), tokenizer_vocab_size=320)


def test_tokenizer_from_a_folder(tmp_path: Path):
    tokenizer = train_bpe(iter(["some text to learn from"] * 20), 270)
    tokenizer.save_pretrained(tmp_path / "tok")
    prepared = prepare(corpus(tmp_path), tokenizer=str(tmp_path / "tok"))
    assert prepared.description["fingerprints"]["tokenizer"] != ""
    with pytest.raises(UserError, match="cannot be loaded"):
        prepare(tmp_path / "docs.jsonl", tokenizer=str(tmp_path / "nothing"))


def test_training_a_tokenizer_is_deterministic_and_lossless():
    texts = ["Größe ☃ tabs\t and\n\n newlines, numbers 12345"] * 30
    one, two = train_bpe(iter(texts), 300), train_bpe(iter(texts), 300)
    assert one.get_vocab() == two.get_vocab()
    assert one.decode(one(texts[0])["input_ids"]) == texts[0]


def test_writer_keeps_tokens_across_shards(tmp_path: Path):
    writer = BlockWriter(tmp_path, "t", 4, np.dtype("uint16"), max_blocks=5)
    stream = list(range(1, 30))
    writer.add(stream[:6], 6)
    writer.flush()
    state = json.loads(json.dumps(writer.state()))
    writer = BlockWriter(tmp_path, "t", 4, np.dtype("uint16"), max_blocks=5)
    writer.restore(state)
    writer.add(stream[6:], 23)
    assert writer.full
    writer.flush()
    rows = load_blocks(tmp_path, writer.shards)[:]["input_ids"]
    assert np.array_equal(rows.ravel(), stream[:20])


@pytest.mark.parametrize("size", [11_000, 65_000, 700_000])
def test_a_text_file_ends_once_and_where_a_part_was_cut_out(tmp_path: Path, size: int):
    line = "One sentence of a long book about norms, which has no end until its last page.\n"
    train_bpe(iter([line * 20]), 300).save_pretrained(tmp_path / "tok")
    (tmp_path / "book.txt").write_text(line * (size // len(line)))
    keys = {"tokenizer": str(tmp_path / "tok"), "validation_fraction": 0.1, "validation_tokens": 10**6}
    prepared = prepare(tmp_path / "book.txt", block_size=8, **keys)
    end = prepared.tokenizer.eos_token_id
    ends = {p: int((getattr(prepared, p)[:]["input_ids"] == end).sum()) for p in ("train", "validation")}
    assert prepared.description["key"]["version"] == 3
    # Every held-out run ends once and parts the training text once; the document's own end may be in the last block.
    assert 1 <= ends["validation"] <= 30 and 0 <= ends["train"] - ends["validation"] <= 2


def test_a_tokenizer_with_holes_is_judged_by_its_largest_id(tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    for name, end in (("small", 356), ("large", 70_256)):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<|end|>": end}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(tmp_path / name)
    with pytest.raises(UserError, match=r"257 entries with ids up to 356 but .* is 300; set model\.vocab_size to 357"):
        prepare(corpus(tmp_path), tokenizer=str(tmp_path / "small"))
    data = DataArguments(
        corpus=str(tmp_path / "docs.jsonl"), tokenizer=str(tmp_path / "large"), block_size=16, validation_fraction=0.1
    )
    prepared = preparing.prepare_data(data, vocab_size=80_000, run_tokens=0, say=lambda text: None)
    stored = prepared.train[:]["input_ids"]
    assert (
        stored.max() == 70_256
        and prepared.train.features["input_ids"].feature.dtype == "int32"
        and prepared.description["key"]["version"] == 2
    )


def test_blocks_of_an_earlier_version_are_used_on(tmp_path: Path):
    (tmp_path / "book.txt").write_text("A sentence about norms and their spread.\n" * 500)
    path, said = tmp_path / "book.txt", []
    now = prepare(path)
    description = {k: v for k, v in now.description.items() if k != "format"}
    old = now.folder.with_name("earlier")
    now.folder.rename(old)
    description["key"] = {**description["key"], "version": 1}
    recorded = description["fingerprints"] = {**description["fingerprints"], "blocks": "earlier"}
    (old / "data.json").write_text(json.dumps(description))
    data = DataArguments(
        corpus=str(path), block_size=16, validation_fraction=0.1, validation_tokens=10_000, tokenizer_vocab_size=300
    )
    found = preparing.prepare_data(data, vocab_size=300, run_tokens=1000, say=said.append, recorded=recorded)
    assert found.folder == old and found.description["fingerprints"] == recorded
    assert any("an earlier version made the blocks" in line for line in said)
    # Others than those of the run are not, nor by another recipe.
    assert prepare(path).folder != old
    wrong = preparing.prepare_data(data, vocab_size=300, run_tokens=0, say=said.append, recorded={"blocks": "earlier"})
    assert wrong.folder != old


def test_what_killed_preparations_left_is_tidied(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    blocks, tokenizers = tmp_path / "cache" / "blocks", tmp_path / "cache" / "tokenizers"
    names = [blocks / ".old.partial", blocks / ".held.partial", blocks / ".new.partial", tokenizers / ".key.abc"]
    for folder in [*names, blocks / "finished"]:
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
        if folder.name != ".new.partial":
            for path in (folder / "file", folder):
                os.utime(path, (1, 1))
    launches = [tmp_path / "cache" / "held" / f"{age}.lock" for age in ("old", "new")]
    launches[0].parent.mkdir()
    for path in launches:
        path.write_text("")
    os.utime(launches[0], (1, 1))
    said: list[str] = []
    with FileLock(str(blocks / "held.lock")):
        tidy_cache(said.append)
    assert [path.exists() for path in launches] == [False, True]
    assert [folder.exists() for folder in names] == [False, True, True, False] and (blocks / "finished").exists()
    assert len(said) == 2 and "old.partial" in said[0]
    prepare(corpus(tmp_path))
    assert not names[1].exists()
