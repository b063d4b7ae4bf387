# SPDX-License-Identifier: Apache-2.0
"""Lists, patterns and mixtures of sources: what is read, in which shares and order, and what is refused."""

import bz2
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from ibnorm_hf.common.corpus import corpus_label, corpus_names, corpus_sources
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.studies.plan import as_words
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.keys.identity import run_id
from ibnorm_hf.training.keys.reading import read
from ibnorm_hf.training.keys.recipe import load_recipe
from ibnorm_hf.training.text import batches, packing
from ibnorm_hf.training.text import prepare as preparing
from ibnorm_hf.training.text.corpora import look
from ibnorm_hf.training.text.sources.registry import open_source
from ibnorm_hf.training.text.tokenizer import END_OF_TEXT

KEYS = {"block_size": 16, "validation_fraction": 0.1, "validation_tokens": 10_000, "tokenizer_vocab_size": 257}


def records(path: Path, word: str, count: int, words: int = 4) -> Path:
    """Documents ``WORD-number WORD WORD ...``, as the ending of the path wants them."""
    texts = [f"{word}{number} " + f"{word} " * (words + number % 3) for number in range(count)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if ".txt" in path.name:
        content = "\n".join(texts).encode()
    packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)
    return path


def prepare(corpus: Any, said: list[str] | None = None, **keys: Any) -> preparing.PreparedData:
    """Blocks of single characters."""
    data = DataArguments(corpus=corpus, **{**KEYS, **keys})
    say = (lambda text: None) if said is None else said.append
    return preparing.prepare_data(data, vocab_size=257, run_tokens=3200, say=say)


def documents(prepared: preparing.PreparedData, part: str = "train") -> list[str]:
    rows = np.concatenate([row["input_ids"] for row in getattr(prepared, part)])
    return prepared.tokenizer.decode(rows).split(END_OF_TEXT)


def mixture(tmp_path: Path, weights=(7, 3), counts=(3000, 200), words=(2, 30)) -> list[dict[str, Any]]:
    """Two sources, of short and of long documents."""
    names = [records(tmp_path / f"{w}.jsonl", w, n, k) for w, n, k in zip("ab", counts, words, strict=True)]
    return [{"name": str(name), "weight": weight} for name, weight in zip(names, weights, strict=True)]


# ---- what is read ----------------------------------------------------------------------------------------------


def test_a_list_is_read_in_its_order_and_each_source_is_counted(tmp_path: Path):
    names = [records(tmp_path / name, name[0], 120) for name in ("b.jsonl", "ä ☃.jsonl.gz", "a.txt.bz2")]
    said: list[str] = []
    prepared = prepare([str(name) for name in names], said, sample_by="line")
    first = [text[0] for text in documents(prepared) if text]
    assert "".join(dict.fromkeys(first)) == "bäa"
    sources = prepared.description["corpus"]["sources"]
    assert prepared.description["corpus"]["kind"] == "list"
    assert [one["name"] for one in sources] == [str(name) for name in names]
    assert [one["documents"] for one in sources] == [120] * 3 and prepared.description["documents"] == 360
    whole = sum(one["training_tokens"] for one in sources)
    assert 0 <= whole - prepared.description["train"]["tokens"] < 16
    assert sum(one["validation_tokens"] for one in sources) >= prepared.description["validation"]["tokens"] > 0
    assert any("120 documents" in line and "☃" in line for line in said)
    # The same files as a folder hold the same documents.
    alone = prepare(str(tmp_path), sample_by="line")
    assert (
        Counter(documents(alone)[1:-1]) - Counter(documents(prepared)) == Counter() or alone.folder != prepared.folder
    )
    turned = prepare([str(name) for name in reversed(names)], sample_by="line")
    assert turned.folder != prepared.folder


def test_a_pattern_reads_or_names_every_file_that_it_matches(tmp_path: Path):
    records(tmp_path / "data" / "a.jsonl", "a", 3)
    records(tmp_path / "data" / "deep" / "er" / "b.jsonl.gz", "b", 3)
    (tmp_path / "data" / "deep" / "notes.pdf").write_bytes(b"%PDF\0")
    (tmp_path / "data" / "deep" / "empty.txt").touch()

    def found(pattern: str) -> tuple[list[str], dict[str, Any]]:
        source = open_source(DataArguments(corpus=str(tmp_path / "data" / pattern)))
        return [piece.text[0] for piece, _ in source.pieces()], source.describe()

    assert found("*.jsonl")[0] == ["a"] * 3
    texts, description = found("**")
    assert texts == ["a"] * 3 + ["b"] * 3 and description["files"] == 3
    assert description["left_out"] == {"count": 1, "first": ["deep/notes.pdf"]}
    assert description["path"].endswith("data/**")
    assert found("**/*.jsonl*")[0] == ["a"] * 3 + ["b"] * 3
    assert found("de[e]p")[0] == ["b"] * 3
    # The same files under the same names are the same text, however they were named.
    whole = open_source(DataArguments(corpus=str(tmp_path / "data")))
    by_pattern = open_source(DataArguments(corpus=str(tmp_path / "data" / "**")))
    assert whole.fingerprint() == by_pattern.fingerprint()
    with pytest.raises(UserError, match=r"corpus pattern .*\*\.csv matches no file"):
        found("*.csv")
    with pytest.raises(UserError, match=r"corpus pattern .*\*\.pdf matches no \.csv"):
        found("deep/*.pdf")
    # A file whose name looks like a pattern is a file.
    odd = records(tmp_path / "odd[1].jsonl", "o", 2)
    assert [piece.text[0] for piece, _ in open_source(DataArguments(corpus=str(odd))).pieces()] == ["o"] * 2


def test_a_linked_folder_inside_a_folder_is_named(tmp_path: Path):
    records(tmp_path / "elsewhere" / "b.jsonl", "b", 3)
    records(tmp_path / "data" / "a.jsonl", "a", 3)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    source = open_source(DataArguments(corpus=str(tmp_path / "data")))
    assert source.describe()["left_out"] == {"count": 1, "first": ["link"]}
    assert open_source(DataArguments(corpus=str(tmp_path / "data" / "link"))).describe()["files"] == 1


def test_an_empty_file_and_a_mark_in_a_list_cost_nothing(tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "void.txt").touch()
    records(tmp_path / "a.jsonl", "a", 240)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes() + b"{broken\n")
    said: list[str] = []
    prepared = prepare([str(tmp_path / name) for name in ("empty.txt", "a.jsonl", "void.txt")], said)
    assert [one["documents"] for one in prepared.description["corpus"]["sources"]] == [0, 240, 0]
    assert prepared.description["bad_records"]["count"] == 1
    assert any("empty.txt, which holds no text: 0 documents" in line for line in said)


@pytest.mark.parametrize("sample_by", ["line", "paragraph"])
@pytest.mark.parametrize("tail", ["", "\n", "\n\n"])
def test_lines_and_paragraphs_are_documents(tmp_path: Path, sample_by: str, tail: str):
    parting = {"line": "\n", "paragraph": "\n \n\n"}[sample_by]
    texts = ["one", "two ☃", "x" * 5000, "last" if sample_by == "line" else "two\nlines"]
    (tmp_path / "a.txt").write_text(parting.join(texts) + tail)
    source = open_source(DataArguments(corpus=str(tmp_path / "a.txt"), sample_by=sample_by))
    pieces = [piece for piece, _ in source.pieces()]
    assert "|".join(
        "".join(p.text + ("|" if p.ends_document else "") for p in pieces).rstrip("|").split("|")
    ) == "|".join(texts)
    assert sum(piece.ends_document for piece in pieces) == 4 < len(pieces)
    marks = {
        open_source(DataArguments(corpus=str(tmp_path / "a.txt"), **keys)).fingerprint()
        for keys in ({}, {"sample_by": "line"}, {"sample_by": "paragraph"})
    }
    assert len(marks) == 3
    with pytest.raises(UserError, match="sample_by is line, which is for plain text"):
        prepare(str(records(tmp_path / "b.jsonl", "b", 9)), sample_by="line")


# ---- shares ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(7, 3), (0.2, 0.8), (1, 1)])
def test_weights_are_shares_of_training_tokens_whatever_the_lengths(tmp_path: Path, weights: tuple[float, float]):
    said: list[str] = []
    prepared = prepare(mixture(tmp_path, weights), said, token_budget=9600)
    sources, train = prepared.description["corpus"]["sources"], prepared.description["train"]["tokens"]
    shares = [one["training_tokens"] / train for one in sources]
    assert shares == pytest.approx([w / sum(weights) for w in weights], abs=0.02) and train == 9600
    assert sum(one["training_tokens"] for one in sources) == train
    assert [one["share"] for one in sources] == pytest.approx([w / sum(weights) for w in weights])
    # What is recorded is what is in the blocks.
    lengths = [(text[:1], len(text) + 1) for text in documents(prepared)]
    assert sum(n for word, n in lengths if word == "a") / train == pytest.approx(shares[0], abs=0.01)
    # Drawn along all of it, not one source after the other.
    for part in range(4):
        quarter = lengths[part * len(lengths) // 4 : (part + 1) * len(lengths) // 4]
        share = sum(n for word, n in quarter if word == "a") / sum(n for _, n in quarter)
        assert share == pytest.approx(shares[0], abs=0.05)
    assert any(f"{shares[0]:.2%}" in line and "asked" in line for line in said)


def test_one_long_document_takes_turns(tmp_path: Path):
    (tmp_path / "a.txt").write_text("".join(f"A line of {i} a's about norms.\n" for i in range(2000)))
    (tmp_path / "b.txt").write_text("".join(f"B line of {i} b's about norms.\n" for i in range(2000)))
    names = [{"name": str(tmp_path / f"{w}.txt"), "weight": weight} for w, weight in (("a", 1), ("b", 3))]
    prepared = prepare(names, token_budget=32_000)
    sources = prepared.description["corpus"]["sources"]
    assert sources[1]["training_tokens"] / 32_000 == pytest.approx(0.75, abs=0.06)
    assert len(documents(prepared)) > 10


def test_the_mixture_is_a_matter_of_seed_weights_and_contents(tmp_path: Path):
    given = mixture(tmp_path)
    first = prepare(given, token_budget=1600)
    assert prepare([{**one, "weight": one["weight"] * 10} for one in given], token_budget=1600).folder == first.folder
    assert prepare(given, token_budget=1600, corpus_stopping_strategy="all_exhausted").folder != first.folder
    other = prepare(given, token_budget=1600, corpus_seed=1)
    assert other.folder != first.folder and documents(other) != documents(first)
    assert other.description["corpus"]["seed"] == 1
    assert prepare(given[::-1], token_budget=1600).folder != first.folder
    assert prepare([{**given[0], "weight": 8}, given[1]], token_budget=1600).folder != first.folder
    with open(tmp_path / "b.jsonl", "a") as file:  # it grows between two runs
        file.write(json.dumps({"text": "b more"}) + "\n")
    assert prepare(given, token_budget=1600).folder != first.folder


def test_a_mixture_ends_with_the_first_source_or_reads_on(tmp_path: Path):
    given, said = mixture(tmp_path, (1, 1), (300, 2000), (4, 4)), []
    first = prepare(given, said)
    sources = first.description["corpus"]["sources"]
    assert [one["passes"] for one in sources] == [1, 0] and sources[0]["documents"] == 300
    assert sources[1]["training_tokens"] == pytest.approx(sources[0]["training_tokens"], rel=0.1)
    assert any("a.jsonl has run out, and the mixture ends there" in line for line in said)
    both = prepare(given, corpus_stopping_strategy="all_exhausted")
    sources = both.description["corpus"]["sources"]
    assert sources[1]["documents"] == 2000 and sources[1]["passes"] == 1 and sources[0]["passes"] > 5
    assert sources[1]["training_tokens"] == pytest.approx(sources[0]["training_tokens"], rel=0.05)
    # What is held out of a source is held out each time that it is read, and is validation text once.
    train, held = Counter(documents(both)), Counter(documents(both, "validation")[1:-1])
    assert not set(train) & set(held) and len(held) > 20 and set(held.values()) == {1}
    assert max(train[text] for text in train if text.startswith("a")) > 4


def test_a_source_that_can_give_nothing_ends_in_a_sentence(tmp_path: Path):
    big = str(records(tmp_path / "big.jsonl", "b", 900))
    (tmp_path / "void.jsonl").write_text("\n")
    given = [{"name": big, "weight": 9}, {"name": str(tmp_path / "void.jsonl"), "weight": 1}]
    for strategy in ("first_exhausted", "all_exhausted"):
        with pytest.raises(UserError, match=r"void\.jsonl' holds no text to take its share of; leave it out"):
            prepare(given, corpus_stopping_strategy=strategy)


def test_nothing_is_read_again_for_validation_text_alone(tmp_path: Path):
    given = mixture(tmp_path, (1, 1), (900, 900), (4, 4))
    keys = {"corpus_stopping_strategy": "all_exhausted", "validation_fraction": 0.001, "token_budget": 3200}
    with pytest.raises(UserError, match="its validation part has 0 tokens"):
        prepare(given, **keys)
    # Once the budget is full, the first end is the end.
    sources = prepare(given, **{**keys, "validation_fraction": 0.02}).description["corpus"]["sources"]
    assert sum(one["training_tokens"] for one in sources) == 3200 and sum(one["passes"] for one in sources) <= 1


@pytest.mark.faults
@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("die_at", [3, 40, 150])
def test_a_killed_mixture_goes_on_where_it_was(tmp_path: Path, monkeypatch, strategy: str, die_at: int):
    monkeypatch.setattr(batches, "BATCH_CHARS", 150)
    monkeypatch.setattr(packing, "SHARD_TOKENS", 300)
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    given = mixture(tmp_path, (1, 2), (200, 700), (4, 4))
    broken = (tmp_path / "a.jsonl").read_text().replace("\n", "\n{broken\n").replace('"a2 ', '"', 1)
    (tmp_path / "a.jsonl").write_text(broken)
    keys = {"corpus_stopping_strategy": strategy, "max_bad_records": 200}
    whole = prepare(given, **keys)
    finished = {part: documents(whole, part) for part in ("train", "validation")}
    whole.folder.rename(tmp_path / "kept")
    real, calls = packing.Packer._write, []

    def dying(self, *words):
        calls.append(1)
        if len(calls) == die_at:
            raise KeyboardInterrupt
        real(self, *words)

    monkeypatch.setattr(packing.Packer, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(given, **keys)
    calls[:] = [1] * 10_000
    resumed = prepare(given, **keys)
    assert {part: documents(resumed, part) for part in ("train", "validation")} == finished
    kept = json.loads((tmp_path / "kept" / "data.json").read_text())
    assert resumed.description == kept and kept["bad_records"]["count"] == 200


def test_a_mixture_does_not_depend_on_the_workers(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_CHARS", 400)
    given, found = mixture(tmp_path, (1, 2), (300, 300), (4, 9)), []
    (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text().replace("\n", "\n{broken\n"))
    for workers in (1, 3):
        monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / f"cache{workers}"))
        found.append(prepare(given, prepare_workers=workers, token_budget=3200, max_bad_records=1000))
    assert documents(found[0]) == documents(found[1])
    one, three = ({k: v for k, v in data.description.items()} for data in found)
    assert one == three and one["bad_records"]["count"] > 10


def test_bad_records_of_all_sources_are_one_count(tmp_path: Path):
    for word in "ab":
        path = records(tmp_path / f"{word}.jsonl", word, 160)
        path.write_text(path.read_text().replace("\n", "\n{broken\n", 30))
    names = [str(tmp_path / f"{word}.jsonl") for word in "ab"]
    for corpus in (names, [{"name": name, "weight": 1} for name in names]):
        with pytest.raises(UserError, match="more than max_bad_records = 59 unreadable records"):
            prepare(corpus, max_bad_records=59)
        assert prepare(corpus, max_bad_records=60).description["bad_records"]["count"] == 60


@pytest.fixture
def hub(tmp_path: Path, monkeypatch):
    """A data set `owner/name` of 500 documents, streamed from a local file in place of the network."""
    path = records(tmp_path / "hub" / "train.jsonl", "h", 500)
    real = datasets.load_dataset
    asked: list[Any] = []

    def load(name, config, *, split, revision, streaming):
        asked.append((name, config, split))
        return real("json", data_files=str(path), split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("ibnorm_hf.training.text.sources.hub.resolve_commit", lambda name, revision: "c" * 40)
    return asked


def test_a_data_set_of_the_hub_in_a_mixture(tmp_path: Path, hub):
    given = [
        {"name": "owner/name", "weight": 3, "config": "en", "split": "some"},
        {"name": str(records(tmp_path / "a.jsonl", "a", 500)), "weight": 1},
    ]
    prepared = prepare(given)
    # Its budget is what the run consumes.
    assert prepared.description["train"]["tokens"] == 3200 and set(hub) == {("owner/name", "en", "some")}
    sources = prepared.description["corpus"]["sources"]
    assert sources[0]["training_tokens"] / 3200 == pytest.approx(0.75, abs=0.02)
    assert (sources[0]["kind"], sources[0]["commit"], sources[1]["kind"]) == ("hub", "c" * 40, "files")
    with pytest.raises(
        UserError, match=r"'owner/name' is a data set on the Hub.*give every source of the list a weight"
    ):
        prepare([one["name"] for one in given])


def test_a_run_goes_on_with_the_commit_that_it_was_begun_with(tmp_path: Path, hub, monkeypatch):
    given = [
        {"name": "owner/name", "weight": 1},
        {"name": str(records(tmp_path / "a.jsonl", "a", 500)), "weight": 1},
    ]
    begun = prepare(given)
    monkeypatch.setattr(
        "ibnorm_hf.training.text.sources.hub.resolve_commit", lambda name, revision: revision or "d" * 40
    )
    assert prepare(given).folder != begun.folder
    data = DataArguments(corpus=given, **KEYS)
    again = preparing.prepare_data(
        data, vocab_size=257, run_tokens=3200, say=str, recorded=begun.description["fingerprints"]
    )
    assert again.folder == begun.folder


# ---- an own validation text ------------------------------------------------------------------------------------


def test_validation_text_of_its_own(tmp_path: Path):
    train = records(tmp_path / "a.jsonl", "a", 200)
    held = [str(records(tmp_path / "held" / f"{word}.jsonl.gz", word, 60)) for word in "vw"]
    prepared = prepare(str(train), validation_corpus=held)
    assert {text[:1] for text in documents(prepared)[:-1]} == {"a"}
    assert {text[:1] for text in documents(prepared, "validation")[:-1]} == {"v", "w"}
    sources = prepared.description["validation_corpus"]["sources"]
    assert [one["documents"] for one in sources] == [60, 60] and sources[0]["training_tokens"] == 0
    # The whole corpus is trained on, the tokenizer learns nothing of the validation text, which is part of the key.
    assert sum(text.startswith("a") for text in documents(prepared)) == 200
    one = prepare(str(train), validation_corpus=held[0])
    assert one.folder != prepared.folder and one.description["validation_corpus"]["kind"] == "files"
    assert one.description["fingerprints"]["tokenizer"] == prepared.description["fingerprints"]["tokenizer"]
    assert (
        one.description["fingerprints"]["validation_corpus"]
        != prepared.description["fingerprints"]["validation_corpus"]
    )
    assert prepare(str(train), validation_corpus=str(tmp_path / "held" / "*")).description["validation"]["tokens"] > 0
    records(tmp_path / "held" / "v.jsonl.gz", "v", 61)
    assert prepare(str(train), validation_corpus=held[0]).folder != one.folder


def test_validation_text_that_is_trained_on_is_refused(tmp_path: Path):
    train = records(tmp_path / "data" / "a.jsonl", "a", 50)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(train.read_bytes())
    for corpus, held in ((train, train), (train.parent, copy), (train, tmp_path), ([str(train)], copy)):
        corpus = corpus if isinstance(corpus, list) else str(corpus)
        with pytest.raises(UserError, match=r"validation_corpus: .*jsonl is trained on as well, as .*a\.jsonl"):
            prepare(corpus, validation_corpus=str(held))
    with pytest.raises(UserError, match=r"key validation_corpus: .*a\.jsonl is read already, by the key corpus"):
        look(DataArguments(corpus=str(train), validation_corpus=str(train.parent)))


def test_too_little_text_says_what_helps(tmp_path: Path):
    few, small, enough = (str(records(tmp_path / f"{n}.jsonl", "s", n)) for n in (1, 12, 90))
    uneven = str(tmp_path / "uneven.jsonl")
    Path(uneven).write_text("".join(json.dumps({"text": "a " * size}) + "\n" for size in (150, 2500)))
    cases = [
        # (corpus, keys, what is said, what is not)
        (small, {"block_size": 4096}, "its training part has .* block of 4096; lower block_size or give", "fraction"),
        (uneven, {"block_size": 400, "validation_fraction": 0.4}, "its training part .* lower val", "raise"),
        (enough, {"validation_fraction": 0.001}, "its validation part .* raise validation_fraction", "lower val"),
        (enough, {"validation_corpus": few}, r"validation_corpus '.*1\.jsonl' is too small: it has", "fraction"),
        (few, {"validation_corpus": enough}, r"corpus '.*1\.jsonl' is too small: it has", "fraction"),
    ]
    for corpus, more, said, unsaid in cases:
        with pytest.raises(UserError, match=said) as caught:
            prepare(corpus, **{"block_size": 64, **more})
        assert unsaid not in str(caught.value)


# ---- the key ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ("[]", "key corpus is an empty list"),
        ("[a.txt, a.txt]", "key corpus names 'a.txt' twice"),
        ("[a.txt, ./a.txt]", "names './a.txt' twice"),
        ("[{name: a.txt, weight: 0}]", "gives 'a.txt' the weight 0; a weight is a number above 0"),
        ("[{name: a.txt, weight: -1}]", "the weight -1"),
        ("[{name: a.txt, weight: .inf}]", "the weight inf"),
        ("[{name: a.txt, weight: true}]", "the weight True"),
        ("[{name: a.txt, weight: much}]", "the weight much"),
        ("[{name: a.txt, weight: 1}, b.txt]", "gives some sources a weight and 'b.txt' none"),
        ("[{name: a.txt, wieght: 1}]", "has an entry with 'wieght'; did you mean 'weight'"),
        ("[{weight: 1}]", "has an entry without a name"),
        ("['', a.txt]", "has an empty name"),
        ("[[a.txt]]", "has the entry ['a.txt']; an entry is a name or {name: a.txt, weight: 0.7}"),
        ("[a.txt, null]", "has the entry None"),
        ("[{name: embedded, weight: 1}, {name: 'nothing/*.txt', weight: 1}]", None),
    ],
)
@pytest.mark.parametrize("place", ["file", "command"])
def test_a_wrong_corpus_is_one_sentence(tmp_path: Path, monkeypatch, corpus: str, said: str | None, place: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("words")
    path = tmp_path / "r.yaml"
    path.write_text(f"corpus: {corpus}\n" if place == "file" else "{}")
    words = [] if place == "file" else ["--corpus", corpus]
    if said is None:
        with pytest.raises(UserError, match=r"pattern nothing/\*\.txt matches no file"):
            look(load_recipe(path, words).data)
        return
    with pytest.raises(UserError) as caught:
        load_recipe(path, words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + "/*.txt", "a\0/*", "\0.txt", "~nobody/x.txt", "[.txt"])
def test_a_name_that_can_be_no_path_is_told_in_a_sentence_or_is_one_of_the_hub(tmp_path: Path, name: str):
    path, said = tmp_path / "r.yaml", []
    template = {"messages_column": "m", "corpus": "a.txt", "chat_template": name}
    for keys in ({"corpus": [name]}, {"corpus": name}, {"validation_corpus": name}, template):
        path.write_text(json.dumps(keys))
        try:
            look(load_recipe(path).data)
        except UserError as error:
            said.append(str(error))
    assert said and not any("\n" in sentence for sentence in said) and "key chat_template" in said[-1]


def test_names_are_taken_from_where_the_recipe_lies(tmp_path: Path, monkeypatch):
    records(tmp_path / "data" / "own.txt", "o", 3)
    records(tmp_path / "data" / "more" / "b.jsonl", "b", 3)
    records(tmp_path / "here.txt", "h", 3)
    base = "model_type: ibnorm_llama\ncorpus: [{name: own.txt, weight: 1}, {name: 'mo*/**/*.jsonl', weight: 2}]\n"
    (tmp_path / "data" / "base.yaml").write_text(base + "validation_corpus: [here.txt]\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "top.yaml").write_text("extends: ../data/base.yaml\n")
    monkeypatch.chdir(tmp_path)
    data = load_recipe("mine/top.yaml").data
    look(data)
    names = [name for one in (data.corpus, data.validation_corpus) for name in corpus_names(one)]
    assert names == ["data/own.txt", "data/mo*/**/*.jsonl", "here.txt"] or [Path(n).is_absolute() for n in names]
    files = [len(open_source(DataArguments(corpus=name)).files) for name in names]
    assert files == [1, 1, 1]
    assert load_recipe("mine/top.yaml", ["--corpus", "here.txt", "data"]).data.corpus == ["here.txt", "data"]


def test_ids_of_runs_that_use_none_of_this_stay(make_recipe, monkeypatch):
    recipe = make_recipe()
    first = run_id(recipe)
    later = DataArguments.later
    monkeypatch.setattr(DataArguments, "later", frozenset())
    assert run_id(recipe) != first  # the keys are there
    monkeypatch.setattr(DataArguments, "later", later)
    for words in (("--sample_by", "line"), ("--corpus_seed", 1), ("--messages_column", "m")):
        assert run_id(make_recipe(*words)) != first


def test_readers_of_other_rooms_take_any_corpus():
    assert corpus_names(None) == [] and corpus_label("a") == "a" and corpus_label(None) == "unknown"
    assert corpus_names([{"name": "a", "weight": 1}, "b", {}]) == ["a", "b", "unknown"]
    assert corpus_sources({"kind": "files"}) == [{"kind": "files"}] and corpus_sources({}) == corpus_sources(None) == []
    assert corpus_sources({"kind": "list", "sources": [{"name": "a"}, 7]}) == [{"name": "a"}]


def test_a_study_passes_a_mixture_on(tmp_path: Path):
    keys = {"corpus": [{"name": "a ü.txt", "weight": 0.5}, {"name": "b", "weight": 1}], "validation_corpus": ["c", "d"]}
    (tmp_path / "r.yaml").write_text("{}")
    values = read(tmp_path / "r.yaml", as_words(keys)).values
    assert {key: values[key] for key in keys} == keys
