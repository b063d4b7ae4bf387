# SPDX-License-Identifier: Apache-2.0
"""Conversations: what the template makes of them, and that the loss falls on the assistant's tokens alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.packed import IGNORED
from ibnorm_hf.training import job
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.keys.recipe import load_recipe
from ibnorm_hf.training.loop.objective import TextObjective
from ibnorm_hf.training.text import batches
from ibnorm_hf.training.text import prepare as preparing
from ibnorm_hf.training.text.chat import CHATML, Chat
from ibnorm_hf.training.text.corpora import look
from ibnorm_hf.training.text.encode import Encoder
from ibnorm_hf.training.text.tokenizer import train_bpe

from .conftest import TINY

UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# The header belongs to the turn, turns end with the end of text, a system turn is refused.
OTHER = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ '[' + m['role'] + ']\\n' + m['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\\n' }}{% endif %}"
)
TALK = [
    ("user", "What is 1 + 1?"),
    ("assistant", "It is 2 — größer als 1."),
    ("user", "And ☃?"),
    ("assistant", "  A snowman\n\nin two paragraphs "),
]


def conversation(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


TALKS = [conversation(("user", f"Count {i}?"), ("assistant", f"{i} and {i * i}.")) for i in range(200)]


def write(path: Path, talks: list[Any] = TALKS, key: str = "messages") -> Path:
    path.write_text("".join(json.dumps({key: talk}) + "\n" for talk in talks))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A folder with a tokenizer that knows the marks of ChatML and has no template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = train_bpe(iter([text for _, text in TALK] * 20), 330)
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    made.save_pretrained(folder)
    return folder


def prepare(corpus: Any, tokenizer: Path, said: list[str] | None = None, **keys: Any) -> preparing.PreparedData:
    defaults = {"block_size": 64, "validation_fraction": 0.1, "chat_template": "chatml", "messages_column": "messages"}
    corpus = corpus if isinstance(corpus, list) else str(corpus)
    data = DataArguments(corpus=corpus, tokenizer=str(tokenizer), **{**defaults, **keys})
    say = (lambda text: None) if said is None else said.append
    return preparing.prepare_data(data, vocab_size=400, run_tokens=0, say=say)


def shown(prepared: preparing.PreparedData, part: str = "train") -> tuple[str, list[str]]:
    """(all text of the blocks, the text of each run of targets)."""
    batch = TextObjective().collate(list(getattr(prepared, part)))
    ids, labels = batch["input_ids"].ravel().tolist(), batch["labels"].ravel().tolist()
    runs: list[list[int]] = [[]]
    for token, label in zip(ids, labels, strict=True):
        assert label in (token, IGNORED)
        runs[-1].append(token) if label != IGNORED else runs.append([])
    return prepared.tokenizer.decode(ids), [prepared.tokenizer.decode(run) for run in runs if run]


# ---- what is learned -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        (CHATML, [f"{TALK[1][1]}<|im_end|>", f"{TALK[3][1]}<|im_end|>"]),
        (UNMARKED, [f"{TALK[1][1]}<|im_end|>\n", f"{TALK[3][1]}<|im_end|>\n"]),
        (OTHER, [f"{TALK[1][1]}<|endoftext|>", f"{TALK[3][1].strip()}<|endoftext|>"]),
    ],
    ids=["marked", "unmarked", "other"],
)
def test_labels_are_exactly_the_tokens_of_the_assistant(tmp_path: Path, tokenizer: Path, template: str, learned):
    (tmp_path / "own.jinja").write_text(template)
    talk = conversation(*TALK)
    path = write(tmp_path / "a.jsonl", [talk] * 80)
    prepared = prepare(path, tokenizer, block_size=256, chat_template=str(tmp_path / "own.jinja"))
    text, runs = shown(prepared)
    assert runs[: len(learned)] == learned and set(runs[:-1]) <= set(learned)
    # The tokens are those that anybody gets who renders the conversation by the template.
    rendered = prepared.tokenizer.apply_chat_template(talk, tokenize=False)
    assert text.startswith(rendered.removesuffix("\n"))
    found = prepared.tokenizer.apply_chat_template(
        talk, return_dict=True, return_assistant_tokens_mask="{% gen" in template
    )
    ids = TextObjective().collate(list(prepared.train))["input_ids"].ravel().tolist()
    known = found["input_ids"] if template is not CHATML else found["input_ids"][:-1]
    assert ids[: len(known)] == known
    if "{% gen" in template:
        labels = TextObjective().collate(list(prepared.train))["labels"].ravel().tolist()
        assert [int(label != IGNORED) for label in labels[: len(known)]] == found["assistant_masks"][:-1]
    # Bytes a token are those of what is predicted.
    predicted = sum(len(one.encode()) for one in learned)
    tokens = sum(len(prepared.tokenizer(one, add_special_tokens=False)["input_ids"]) for one in learned)
    assert prepared.description["train"]["bytes_per_token"] == pytest.approx(predicted / tokens, rel=0.02)


def test_conversations_are_parted_and_the_end_is_not_learned_twice(tmp_path: Path, tokenizer: Path):
    text, runs = shown(prepare(write(tmp_path / "a.jsonl"), tokenizer, block_size=128))
    assert "<|im_end|><|endoftext|><|im_start|>" in text and not any("endoftext" in run for run in runs)
    (tmp_path / "own.jinja").write_text(OTHER)
    text, runs = shown(
        prepare(write(tmp_path / "a.jsonl"), tokenizer, block_size=128, chat_template=str(tmp_path / "own.jinja"))
    )
    assert "<|endoftext|><|endoftext|>" not in text and "<|endoftext|>[user]" in text


def test_white_space_that_offsets_leave_out_is_learned_with_its_turn(tmp_path: Path):
    """Tokenizers of GPT-2's kind trim the places of white space: such a token has no character of its own."""
    from tokenizers import processors

    made = train_bpe(iter(["a b\n\n c  d"] * 20), 260)
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = "u: \n\n A b \n\nu: c"
    with Encoder(made) as encoder:
        (ids,) = encoder([(text, [(3, 11)])])
    learned = made.decode([int(i) for i in ids if i >= 0])
    assert learned == text[3:11] and made.decode([int(i if i >= 0 else ~i) for i in ids]) == text


def test_blocks_do_not_depend_on_the_workers(tmp_path: Path, tokenizer: Path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_CHARS", 400)
    path, found = write(tmp_path / "a.jsonl"), []
    for workers in (1, 3):
        monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / f"cache{workers}"))
        found.append(shown(prepare(path, tokenizer, prepare_workers=workers)))
    assert found[0] == found[1]


def test_parquet_and_another_column(tmp_path: Path, tokenizer: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    talks = [
        conversation(*TALK),
        [*conversation(("user", "x")), {"role": "assistant", "content": "y", "name": "n"}],
    ] * 60
    pq.write_table(pa.table({"chat": talks, "n": list(range(120))}), tmp_path / "a.parquet")
    _, runs = shown(prepare(tmp_path / "a.parquet", tokenizer, messages_column="chat", block_size=128))
    assert f"{TALK[1][1]}<|im_end|>" in runs and "y<|im_end|>" in runs
    with pytest.raises(UserError, match="has no column 'messages', only chat, n; set messages_column"):
        prepare(tmp_path / "a.parquet", tokenizer)


def test_with_a_mixture_and_an_own_validation_text(tmp_path: Path, tokenizer: Path):
    given = [
        {"name": str(write(tmp_path / "a.jsonl")), "weight": 1},
        {"name": str(write(tmp_path / "b.jsonl", TALKS[::-1])), "weight": 3},
    ]
    held = write(tmp_path / "v.jsonl", [conversation(("user", "held?"), ("assistant", "out."))] * 40)
    data = {"validation_corpus": str(held), "token_budget": 1280}
    prepared = prepare(given, tokenizer, **data)
    assert set(shown(prepared, "validation")[1][1:-1]) == {"out.<|im_end|>"}
    sources = prepared.description["corpus"]["sources"]
    assert sources[1]["training_tokens"] / 1280 == pytest.approx(0.75, abs=0.1)


# ---- what is not ------------------------------------------------------------------------------------------------


def test_records_that_are_no_conversations_are_counted_and_named(tmp_path: Path, tokenizer: Path):
    turn = {"role": "assistant", "content": "x"}
    bad = [None, "text", [], [7], [{"from": "gpt", "value": "x"}], [{"role": "assistant", "content": 7}]]
    bad += [[{"role": "assistant", "content": " "}], conversation(("user", "alone")), [{"role": "user"}, turn]]
    path = write(tmp_path / "a.jsonl", [*bad, *TALKS])
    with pytest.raises(UserError, match="more than max_bad_records = 3"):
        prepare(path, tokenizer, max_bad_records=3)
    found = prepare(path, tokenizer).description["bad_records"]
    assert found["by_reason"] == {
        "no messages": 1,
        "messages are not a list of turns": 2,
        "a turn is not {role, content}": 2,
        "assistant: text is not a string": 1,
        "assistant: empty": 1,
        "no turn of the assistant": 1,
        "user: no text": 1,
    }


def test_what_a_template_refuses_is_counted_and_named(tmp_path: Path, tokenizer: Path):
    (tmp_path / "own.jinja").write_text(OTHER)
    talks = [conversation(("system", "s"), *TALK), *TALKS]
    found = prepare(write(tmp_path / "a.jsonl", talks), tokenizer, chat_template=str(tmp_path / "own.jinja"))
    assert found.description["bad_records"]["first"] == [f"{tmp_path / 'a.jsonl'}:1 (chat template: no system turn)"]


def test_what_is_too_long_is_counted_and_said(tmp_path: Path, tokenizer: Path):
    long = conversation(("user", "Count?"), ("assistant", "1, 2, 3, 4. " * 30))
    hopeless = conversation(("user", "Count? " * 60), ("assistant", "1"))
    open_end = conversation(("user", "Q"), ("assistant", "A"), ("user", "never answered " * 40))
    said: list[str] = []
    prepared = prepare(write(tmp_path / "a.jsonl", [long, hopeless, open_end, *TALKS]), tokenizer, said)
    assert prepared.description["conversations_shortened"] == 1 == prepared.description["conversations_left_out"]
    assert "data: kept the first 64 tokens of 1 conversations that are longer" in said
    assert any(line.startswith("data: left out 1 conversations in whose first 64 tokens") for line in said)
    for part in ("train", "validation"):
        labels = TextObjective().collate(list(getattr(prepared, part)))["labels"]
        assert labels[:, 1:].ne(IGNORED).any(-1).all()  # every block predicts something
    text, runs = shown(prepared)
    assert "never answered" not in text and runs[0].startswith("1, 2, 3, 4.")
    mixed = [
        {"name": str(write(tmp_path / f"{n}.jsonl", t)), "weight": 1} for n, t in (("c", TALKS), ("d", [hopeless]))
    ]
    with pytest.raises(UserError, match=r"d\.jsonl' has nothing to train on: all of it is held out or too long"):
        prepare(mixed, tokenizer, corpus_stopping_strategy="all_exhausted")
    with pytest.raises(UserError, match=r"holds no text \(9 conversations are too long for block_size 64\)"):
        prepare(write(tmp_path / "b.jsonl", [hopeless] * 9), tokenizer)


def test_a_template_whose_beginning_is_not_the_beginning_of_the_whole_is_refused(tmp_path: Path, tokenizer: Path):
    template = (
        "{% for m in messages %}{{ '<' + m['role'] + '>' }}"
        "{{ m['content'] if loop.last else m['content'][:13] }}{% endfor %}"
    )
    (tmp_path / "own.jinja").write_text(template)
    path = write(tmp_path / "a.jsonl", [conversation(*TALK)])
    with pytest.raises(UserError, match=r"at turn 2 of .*a\.jsonl:1, so where the assistant speaks cannot be told"):
        prepare(path, tokenizer, chat_template=str(tmp_path / "own.jinja"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in", "is no Jinja template: .*line 1"),
        ("hello", "leaves out what the assistant says"),
        ("{% generation %}{% endgeneration %}{{ messages[1]['content'] }}", "leaves out what the assistant says"),
        ("{{ raise_exception('never') }}", "fails at one question and its answer: never"),
        ("{{ messages[7]['content'] }}", "fails at one question"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_once(tmp_path: Path, tokenizer: Path, template: str, said: str):
    with pytest.raises(UserError, match=said) as caught:
        Chat(template, {})
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_template_says_which_key_gives_one(tmp_path: Path, tokenizer: Path):
    with pytest.raises(UserError, match="has no chat template; set chat_template to a file with one, or to chatml"):
        prepare(write(tmp_path / "a.jsonl"), tokenizer, chat_template=None)
    with pytest.raises(UserError, match=r"key chat_template: .*none\.jinja is no file"):
        look(DataArguments(messages_column="m", chat_template=str(tmp_path / "none.jinja")))
    own = AutoTokenizer.from_pretrained(tokenizer)
    own.chat_template = OTHER
    own.save_pretrained(tmp_path / "own")
    prepared = prepare(write(tmp_path / "a.jsonl"), tmp_path / "own", chat_template=None, block_size=128)
    assert shown(prepared)[0].startswith("[user]\nCount 0?<|endoftext|>[assistant]\n0 and 0.")
    assert prepare(tmp_path / "a.jsonl", tmp_path / "own", block_size=128).folder != prepared.folder
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(UserError, match="is plain text and has no columns; messages_column is for jsonl"):
        prepare(tmp_path / "a.txt", tokenizer)


def test_a_template_reaches_nothing_outside_its_sandbox():
    reach = "{{ ().__class__.__base__.__subclasses__() }}{{ messages[1]['content'] }}"
    with pytest.raises(UserError, match="fails at one question and its answer: access to attribute '__class__'"):
        Chat(reach, {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--chat_template", "chatml"], "key chat_template needs messages_column"),
        (["--messages_column", "m", "--text_column", "t"], "key text_column and messages_column exclude each other"),
        (["--messages_column", "m", "--prompt_column", "p", "--completion_column", "c"], "and prompt_column exclude"),
        (["--messages_column", "m", "--corpus", "embedded"], "key messages_column needs columns: the embedded corpus"),
        (["--validation_corpus", "a", "--validation_split", "b"], "key validation_corpus and validation_split exclude"),
        (["--validation_corpus", "[{name: a, weight: 1}]"], "key validation_corpus takes no weights"),
        (["--corpus_stopping_strategy", "never"], "must be first_exhausted or all_exhausted"),
        (["--sample_by", "word"], "key sample_by must be document, paragraph or line"),
    ],
)
def test_contradictions_are_one_sentence(make_recipe, words: list[str], said: str):
    with pytest.raises(UserError) as caught:
        make_recipe(*words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# ---- training ---------------------------------------------------------------------------------------------------


def test_a_run_on_conversations(tmp_path: Path, tokenizer: Path, capsys):
    keys = {
        "corpus": [str(write(tmp_path / "a.jsonl")), str(write(tmp_path / "ß ☃.jsonl", TALKS[::-1]))],
        "validation_corpus": str(write(tmp_path / "v.jsonl", TALKS[1::2])),
        "tokenizer": tokenizer,
        "messages_column": "messages",
        "chat_template": "chatml",
    }
    kept = [line.replace("vocab_size: 300", "vocab_size: 400") for line in TINY.splitlines() if "corpus" not in line]
    path = tmp_path / "chat.yaml"
    lines = [f"{key}: {json.dumps(value) if isinstance(value, list) else value}" for key, value in keys.items()]
    path.write_text("\n".join([*kept, *lines]))
    run = tmp_path / "run"
    words = ["--output_dir", str(run), "--max_steps", "30", "--eval_steps", "10"]
    assert main(["pretrain", str(path), *words, "--dry_run"]) == 0
    result = job.pretrain(load_recipe(path, words))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert result.validation["loss"] < metrics[0]["loss"] - 1
    # The evaluation of the finished model reads the same blocks by its own code.
    assert main(["eval", str(run), "--tasks", "perplexity"]) == 0, capsys.readouterr().err
    found = json.loads((run / "eval" / "perplexity.json").read_text())
    assert found["tokens"] == result.validation["tokens"] and found["loss"] == pytest.approx(
        result.validation["loss"], rel=1e-5
    )
    # Its tokenizer takes the template along, and the card names every source.
    assert AutoTokenizer.from_pretrained(run / "model").chat_template == CHATML
    assert main(["card", str(run)]) == 0, capsys.readouterr().err
    card = (run / "model" / "README.md").read_text()
    assert all(name in card.partition("## Recipe")[0] for name in ("a.jsonl", "ß ☃.jsonl", "v.jsonl"))
    # The folder's own recipe is a recipe.
    assert job.pretrain(load_recipe(run / "config.yaml", ["--output_dir", str(run)])).found
