# SPDX-License-Identifier: Apache-2.0
"""Prompts and completions: masks stored, restored and counted; one loss however a step is split."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, set_seed

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.packed import IGNORED, mask, unpack
from ibnorm_hf.training import job
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.keys.recipe import Recipe, load_recipe
from ibnorm_hf.training.loop.objective import TextObjective
from ibnorm_hf.training.loop.order import SampleOrder
from ibnorm_hf.training.model.build import build_config, build_model
from ibnorm_hf.training.text import batches, packing
from ibnorm_hf.training.text import prepare as preparing
from ibnorm_hf.training.text.sources.registry import open_source

from .conftest import TINY
from .test_processes import same_run, two_processes

COLUMNS = {"prompt_column": "ask", "completion_column": "tell"}
# Completions of one to forty characters: micro-batches of the same size hold unequal numbers of targets.
RECORDS = [(f"Count {i * i}?", "so it is. "[: i % 9 + 1] * (i % 4 + 1)) for i in range(400)]


def write(path: Path, records: list[tuple[Any, Any]] = RECORDS) -> Path:
    path.write_text("".join(json.dumps({"ask": ask, "tell": tell}) + "\n" for ask, tell in records))
    return path


def prepare(path: Path | str, **keys: Any) -> preparing.PreparedData:
    """Blocks of 16 of single characters: 257 entries are the bytes and the end of text."""
    defaults = {"block_size": 16, "validation_fraction": 0.1, "validation_tokens": 10_000, "tokenizer_vocab_size": 257}
    data = DataArguments(corpus=str(path), **{**defaults, **COLUMNS, **keys})
    return preparing.prepare_data(data, vocab_size=257, run_tokens=1000, say=lambda text: None)


def shown(prepared: preparing.PreparedData, part: str = "train") -> tuple[str, str]:
    """(text, targets) of all blocks, a character a token; ``|`` ends a record, ``_`` is masked."""
    batch = TextObjective().collate(list(getattr(prepared, part)))
    letters = {i: c for c, i in prepared.tokenizer.get_vocab().items()} | {IGNORED: "_"}
    letters[prepared.tokenizer.eos_token_id] = "|"
    return tuple("".join(letters[i] for i in batch[name].ravel().tolist()) for name in ("input_ids", "labels"))


def test_loss_falls_on_the_completion_and_its_end(tmp_path: Path):
    records = [("ab?", "cdef"), ("", "g"), ("hij?", "kl"), ("longer?", "m")]
    text, targets = shown(prepare(write(tmp_path / "hand.jsonl", [*records, *RECORDS]), block_size=8))
    # Six tokens of a prompt fit beside a target into a block of eight.
    assert text.startswith("ab?cdef|g|hij?kl|onger?m|")
    assert targets.startswith("___cdef|g|____kl|______m|______")


def test_every_record_is_whole_and_in_one_part(tmp_path: Path):
    prepared = prepare(write(tmp_path / "all.jsonl"))
    expected = [(f"{ask}{tell}".replace(" ", "Ġ"), "_" * len(ask) + tell.replace(" ", "Ġ")) for ask, tell in RECORDS]
    seen = []
    for part in ("train", "validation"):
        text, targets = shown(prepared, part)
        # The unfinished last block is dropped, and what it began with it.
        ends = [-1, *(i for i, letter in enumerate(text) if letter == "|")]
        assert all(targets[end] == "|" for end in ends[1:])
        found = [(text[a + 1 : b], targets[a + 1 : b]) for a, b in itertools.pairwise(ends)]
        assert set(found) <= set(expected)
        seen.append({record for record, _ in found})
    assert not seen[0] & seen[1] and min(map(len, seen)) > 20
    assert len(seen[0]) + len(seen[1]) >= len(RECORDS) - 6
    assert prepared.description["documents"] == len(RECORDS)


def test_only_targets_make_bytes_per_token(tmp_path: Path):
    prepared = prepare(write(tmp_path / "bytes.jsonl", [("prompt " * 2, "größer")] * 300))
    # Eight bytes, eight tokens, and an end of text.
    assert prepared.description["train"]["bytes_per_token"] == pytest.approx(8 / 9, rel=0.02)
    plain = prepare(tmp_path / "bytes.jsonl", prompt_column=None, completion_column=None, text_column="tell")
    assert plain.train.features["input_ids"].feature.dtype == "uint16"
    assert "prompts_shortened" not in plain.description
    swapped = prepare(tmp_path / "bytes.jsonl", prompt_column="tell", completion_column="ask")
    assert len({prepared.folder, plain.folder, swapped.folder}) == 3


def test_a_tokenizer_learns_from_prompts_too(tmp_path: Path):
    data = DataArguments(corpus=str(write(tmp_path / "few.jsonl", RECORDS[:2])), **COLUMNS)
    assert list(preparing._training_texts(data)) == [*RECORDS[0], *RECORDS[1]]


def test_masks_are_undone_exactly():
    ids = np.array([0, 7, 65_535], np.uint16)
    assert mask(ids).tolist() == [-1, -8, -65_536]
    stored = np.stack([mask(ids), ids.astype(np.int32)])
    restored, labels = unpack(stored)
    assert restored.tolist() == [ids.tolist()] * 2 and restored.dtype == labels.dtype == torch.int64
    assert labels.tolist() == [[IGNORED] * 3, ids.tolist()]


def test_blocks_do_not_depend_on_the_workers(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_CHARS", 400)
    records = [(ask * (1 + 9 * (i % 5 == 0)), tell) for i, (ask, tell) in enumerate(RECORDS)]
    path, prepared = write(tmp_path / "many.jsonl", records), []
    for workers in (1, 3):
        monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / f"cache{workers}"))
        prepared.append(prepare(path, prepare_workers=workers, token_budget=4000))
    one, three = (data.description for data in prepared)
    assert one["validation"]["sha256"] == three["validation"]["sha256"]
    assert shown(prepared[0]) == shown(prepared[1])
    assert one["train"]["tokens"] == 4000
    assert one["prompts_shortened"] == three["prompts_shortened"] > 0


@pytest.mark.faults
@pytest.mark.parametrize("die_at", [6, 15, 16])
def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path, monkeypatch, die_at: int):
    monkeypatch.setattr(batches, "BATCH_CHARS", 200)
    monkeypatch.setattr(packing, "SHARD_TOKENS", 300)
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    records = [(ask * (1 + 9 * (i % 5 == 0)), tell) for i, (ask, tell) in enumerate(RECORDS)]
    path = write(tmp_path / "killed.jsonl", records)
    whole = prepare(path)
    finished = [shown(whole, part) for part in ("train", "validation")]
    whole.folder.rename(tmp_path / "kept")
    real, calls = packing.Packer._write, []

    def dying(self, *words):
        calls.append(1)
        if len(calls) == die_at:
            raise KeyboardInterrupt
        real(self, *words)

    monkeypatch.setattr(packing.Packer, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(path)
    calls[:] = [1] * 100
    resumed = prepare(path)
    assert [shown(resumed, part) for part in ("train", "validation")] == finished
    kept = json.loads((tmp_path / "kept" / "data.json").read_text())
    assert resumed.description == kept and kept["prompts_shortened"] == 80


def test_a_killed_stream_goes_on_where_it_was(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_CHARS", 200)
    monkeypatch.setattr(packing, "SHARD_TOKENS", 300)
    files, load = str(write(tmp_path / "stream.jsonl")), datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **keys: load("json", data_files=files, split="train", streaming=True)
    )
    keys = {"validation_split": "validation", "token_budget": 4000, "tokenizer_vocab_size": 257}
    whole = prepare("owner/stream", **keys)
    finished = shown(whole)
    whole.folder.rename(tmp_path / "kept")
    real, calls = packing.Packer._write, []

    def dying(self, *words):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        real(self, *words)

    monkeypatch.setattr(packing.Packer, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare("owner/stream", **keys)
    assert shown(prepare("owner/stream", **keys)) == finished
    with pytest.raises(UserError, match="has no column 'answer', only ask, tell; set completion_column"):
        prepare("owner/stream", completion_column="answer")


def test_every_block_predicts_something_however_long_the_prompts(tmp_path: Path, capsys):
    # Shortened to 14 of 16 tokens, a completion of one and its end: any longer, and some block would be all prompt.
    path = write(tmp_path / "long.jsonl", [(f"{i:03d}" * 20, "y") for i in range(300)])
    data = DataArguments(
        corpus=str(path), block_size=16, validation_fraction=0.1, tokenizer_vocab_size=257, token_budget=3200, **COLUMNS
    )
    said: list[str] = []
    prepared = preparing.prepare_data(data, vocab_size=257, run_tokens=0, say=said.append)
    for part in ("train", "validation"):
        labels = TextObjective().collate(list(getattr(prepared, part)))["labels"]
        assert labels[:, 1:].ne(IGNORED).any(-1).all()
    text, targets = shown(prepared)
    assert text[:32] == "00000000000000y|" + "01001001001001y|" and targets[:32] == ("_" * 14 + "y|") * 2
    count = prepared.description["prompts_shortened"]
    assert 200 <= count <= 300
    assert f"data: kept the last 14 tokens of {count} prompts that are longer" in said
    # Records of 17 tokens meet every alignment.
    mixed = prepare(write(tmp_path / "mixed.jsonl", [("p" * 40, "y" * (1 + i % 3)) for i in range(400)]))
    assert TextObjective().collate(list(mixed.train))["labels"][:, 1:].ne(IGNORED).any(-1).all()


def test_bad_records_are_counted_and_named(tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    lines = [{"ask": "a", "tell": "b"}, {"ask": "a"}, {"tell": "b"}, {"ask": 1, "tell": "b"}, {"ask": "a", "tell": 1}]
    lines += [{"ask": "a", "tell": " "}, {"ask": "", "tell": "c"}, {"ask": "a\0", "tell": "b"}, []]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_source(DataArguments(corpus=str(path), **COLUMNS))
    assert [(piece.prompt, piece.text) for piece, _ in source.pieces()] == [("a", "b"), ("", "c")]
    assert source.bad.counts == {
        "completion: no text": 1,
        "prompt: no text": 2,
        "prompt: text is not a string": 1,
        "completion: text is not a string": 1,
        "completion: empty": 1,
        "prompt: binary": 1,
    }
    assert source.bad.first[0] == f"{path}:2 (completion: no text)"
    with pytest.raises(UserError, match="more than max_bad_records = 2 unreadable records"):
        list(open_source(DataArguments(corpus=str(path), max_bad_records=2, **COLUMNS)).pieces())


def test_parquet(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The order of the columns in the file does not matter.
    pq.write_table(pa.table({"tell": ["b", None], "other": [1, 2], "ask": ["a", "c"]}), tmp_path / "a.parquet")
    source = open_source(DataArguments(corpus=str(tmp_path), **COLUMNS))
    assert [(piece.prompt, piece.text) for piece, _ in source.pieces()] == [("a", "b")]
    assert source.bad.counts == {"completion: no text": 1}
    wrong = open_source(DataArguments(corpus=str(tmp_path), prompt_column="q", completion_column="tell"))
    with pytest.raises(UserError, match="has no column 'q', only tell, other, ask; set prompt_column"):
        list(wrong.pieces())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt_column", "a"], "command line: key prompt_column needs completion_column beside it"),
        (["--completion_column", "a"], "command line: key completion_column needs prompt_column beside it"),
        (["--prompt_column", "a", "--completion_column", "a"], "key completion_column is prompt_column too"),
        (
            ["--prompt_column", "a", "--completion_column", "b", "--text_column", "c"],
            "command line: key text_column and prompt_column exclude each other",
        ),
        (
            ["--prompt_column", "a", "--completion_column", "b", "--corpus", "embedded"],
            "key prompt_column needs columns: the embedded corpus has none",
        ),
    ],
)
def test_contradictions_are_one_sentence(make_recipe: Callable[..., Recipe], words: list[str], said: str):
    with pytest.raises(UserError) as caught:
        make_recipe(*words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_plain_text_is_refused(tmp_path: Path):
    write(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text("text without columns")
    with pytest.raises(UserError, match=r"b\.txt is plain text and has no columns; prompt_column and"):
        prepare(tmp_path)


# ---- training --------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    """The tiny recipe on the records above, one step logged a line, in the run folder that is named."""
    path = tmp_path / "prompts.yaml"
    keys = {"corpus": write(tmp_path / "records.jsonl"), **COLUMNS, "tokenizer_vocab_size": 257, "logging_steps": 1}
    kept = [line for line in TINY.splitlines() if line.split(":")[0] not in keys]
    path.write_text("\n".join([*kept, *(f"{key}: {value}" for key, value in keys.items())]))
    return lambda name, *words: load_recipe(path, [*map(str, words), "--output_dir", str(tmp_path / name)])


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def target_loss(model: Any, rows: Any) -> tuple[float, int]:
    """(mean nats, number) of the targets of some blocks, each token by itself."""
    batch = TextObjective().collate(list(rows))
    logits = model.eval()(input_ids=batch["input_ids"]).logits.double()
    nats = [
        -F.log_softmax(logits[row, at - 1], -1)[batch["labels"][row, at]].item()
        for row in range(len(logits))
        for at in range(1, logits.shape[1])
        if batch["labels"][row, at] != IGNORED
    ]
    return sum(nats) / len(nats), len(nats)


@torch.no_grad()
def test_a_run_on_completions(recipe_of: Callable[..., Recipe], tmp_path: Path, capsys):
    recipe = recipe_of("run", "--max_steps", 60, "--eval_steps", 20)
    with torch.enable_grad():
        result = job.pretrain(recipe)
    validations = [line["eval_loss"] for line in lines(tmp_path / "run") if "eval_loss" in line]
    assert validations[-1] < validations[0] and validations[-1] < 1.5 < 4 < lines(tmp_path / "run")[0]["loss"]
    blocks = job.prepare(recipe)
    loss, tokens = target_loss(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"), blocks.validation)
    assert result.validation["loss"] == pytest.approx(loss, rel=1e-5)
    assert result.validation["tokens"] == tokens < 0.8 * 31 * len(blocks.validation)
    bits = loss / math.log(2) / blocks.description["validation"]["bytes_per_token"]
    assert result.validation["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    # The evaluation of the finished model reads the same blocks by its own code.
    assert main(["eval", str(tmp_path / "run"), "--tasks", "perplexity"]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "eval" / "perplexity.json").read_text())
    assert (found["tokens"], found["sha256"]) == (tokens, result.validation["sha256"])
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("model_type", ["ibnorm_llama", "llama"])
def test_a_step_weighs_every_target_alike_however_it_is_split(
    recipe_of: Callable[..., Recipe], tmp_path: Path, model_type: str
):
    words = ("--global_batch_size", 4, "--max_steps", 3, "--save_strategy", "no", "--model_type", model_type)
    runs = {}
    for micro in (4, 2, 1):
        recipe = recipe_of(f"by{micro}", *words, "--per_device_train_batch_size", micro)
        job.pretrain(recipe)
        runs[micro] = [line for line in lines(tmp_path / f"by{micro}") if "loss" in line]
    for micro in (2, 1):
        for whole, split in zip(runs[4], runs[micro], strict=True):
            assert split["loss"] == pytest.approx(whole["loss"], rel=1e-5)
            assert split["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    # The first loss is that of the first four blocks under the untrained weights, target by target.
    data = job.prepare(recipe)
    order = SampleOrder(len(data.train), seed=recipe.run.seed, steps=3, batch=4)
    rows = [data.train[int(i)] for i in order.ids(1)]
    counts = [int(TextObjective().collate([row])["labels"][:, 1:].ne(IGNORED).sum()) for row in rows]
    assert sum(counts[:2]) != sum(counts[2:]) and len(set(counts)) > 1
    set_seed(recipe.run.seed)
    with torch.no_grad():
        expected, _ = target_loss(build_model(build_config(recipe, data.tokenizer)), rows)
    assert runs[4][0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_two_processes_equal_one(recipe_of: Callable[..., Recipe], tmp_path: Path):
    words = ["--global_batch_size", "8", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "3"]
    words += ["--save_steps", "2", "--save_total_limit", "9"]
    job.pretrain(recipe_of("one", *words))
    two_processes("ddp", tmp_path / "prompts.yaml", tmp_path / "two")
    same_run(tmp_path / "one", tmp_path / "two")
