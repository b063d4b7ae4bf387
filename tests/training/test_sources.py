# SPDX-License-Identifier: Apache-2.0
"""Reading corpora: formats, and bad input that is counted, named, and stopped at a limit."""

import csv
import gzip
import io
import json
import lzma
import os
import shutil
from pathlib import Path

import pytest

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.text import sources
from ibnorm_hf.training.text.docstrings import module_prose, prose_paragraphs
from ibnorm_hf.training.text.sources import embedded, files, registry
from ibnorm_hf.training.text.sources.base import BadRecords, Source
from ibnorm_hf.training.text.sources.records import MAX_LINE_BYTES
from ibnorm_hf.training.text.sources.registry import open_source

TEXTS = ["First text.\nSecond line.", "Ünïcode ☃ text", "last"]


def read(path: Path, **keys) -> tuple[list[str], Source]:
    source = open_source(DataArguments(corpus=str(path), **keys))
    return [piece.text for piece, _ in source.pieces()], source


def as_jsonl(texts: list) -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()


def test_json_lines_plain_and_packed(tmp_path: Path):
    content = as_jsonl(TEXTS)
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(content))
    (tmp_path / "ignored.py").write_text("not text")
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.xz"):
        assert read(tmp_path / name)[0] == TEXTS
    assert read(tmp_path)[0] == TEXTS * 3


def test_parquet(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": [*TEXTS, None, ""]}), tmp_path / "a.parquet")
    texts, source = read(tmp_path / "a.parquet", text_column="body")
    assert texts == TEXTS
    assert source.bad.counts == {"no text": 1, "empty": 1}
    with pytest.raises(UserError, match="no column 'text', only body; set text_column"):
        read(tmp_path / "a.parquet")


def test_a_text_file_is_one_document_cut_at_blank_lines(tmp_path: Path):
    paragraphs = [f"Paragraph {i}. " * 30 + "\n" for i in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(paragraphs))
    source = open_source(DataArguments(corpus=str(tmp_path / "a.txt")))
    pieces = [piece for piece, _ in source.pieces()]
    assert "".join(p.text for p in pieces) == "\n".join(paragraphs)
    assert len(pieces) > 10
    assert [p.ends_document for p in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("rest", ["", "\n", "\n \n", "\n" * 300], ids=["nothing", "a line", "lines", "many lines"])
@pytest.mark.parametrize("blank", [True, False], ids=["cut at a blank line", "cut at a line"])
def test_a_document_ends_where_its_last_cut_falls_on_its_end(tmp_path: Path, blank: bool, rest: str):
    """The last piece was said to go on where nothing followed it, so its document had no end of text."""
    line = "x" * 63 + "\n"
    (tmp_path / "a.txt").write_text((line * 3 + "x" * 62 + "\n\n" if blank else line * 8) + rest)
    pieces = [piece for piece, _ in open_source(DataArguments(corpus=str(tmp_path / "a.txt"))).pieces()]
    assert [piece.ends_document for piece in pieces] == [True] and len(pieces[0].text) >= 256
    assert pieces[0].text.strip()

    path = tmp_path / "b.txt"
    path.write_text((line * 8 + rest + "\f\n") * 3 + "the last one\n")
    reader = embedded._Documents(DataArguments(), path, BadRecords(0), path.stat().st_size)
    assert [piece.ends_document for piece in reader.read()] == [True] * 4


def test_reading_goes_on_from_any_state(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([f"t{i}" for i in range(5)]))
    (tmp_path / "b.jsonl").write_bytes(as_jsonl([f"u{i}" for i in range(5)]))
    source = open_source(DataArguments(corpus=str(tmp_path)))
    read_once = list(source.pieces())
    for number, (_, state) in enumerate(read_once):
        rest = [piece.text for piece, _ in source.pieces(state)]
        assert rest == [piece.text for piece, _ in read_once[number + 1 :]]


def test_bad_records_are_counted_and_named(tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    lines = [b'{"text": "good"}', b"{broken", b'{"text": ""}', b'{"other": 1}', b"[1]", b'{"text": 7}']
    lines += [b'{"text": "\xff"}', b'{"text": "a\\u0000b"}', b'{"text": "good too"}']
    path.write_bytes(b"\n".join(lines) + b"\n")
    texts, source = read(path)
    assert texts == ["good", "good too"]
    assert source.bad.counts == {
        "malformed JSON": 1,
        "empty": 1,
        "no text": 2,
        "text is not a string": 1,
        "not UTF-8": 1,
        "binary": 1,
    }
    assert source.bad.first[0] == f"{path}:2 (malformed JSON)"
    with pytest.raises(UserError, match=r"more than max_bad_records = 3 unreadable records, first .*bad.jsonl:2"):
        read(path, max_bad_records=3)


def test_a_huge_line_is_skipped_not_loaded(tmp_path: Path):
    path = tmp_path / "huge.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * (MAX_LINE_BYTES + 9) + b'"}\n' + as_jsonl(["after"]))
    texts, source = read(path)
    assert texts == ["after"]
    assert source.bad.counts == {"line over 16 MiB": 1}


@pytest.mark.parametrize(("name", "packed"), [("a.txt.xz", lzma.compress), ("a.txt.gz", gzip.compress)])
def test_a_truncated_archive_is_named(tmp_path: Path, name, packed):
    (tmp_path / name).write_bytes(packed(b"some text\n" * 5000)[:-20])
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        read(tmp_path / name)


def test_a_damaged_parquet_is_named(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        read(tmp_path / "a.parquet")


def test_a_file_in_the_folder_of_kinds_is_all_that_a_kind_needs(tmp_path: Path, monkeypatch):
    (tmp_path / "shouted.py").write_text(
        "from ibnorm_hf.training.text.sources.base import Piece\n"
        "from ibnorm_hf.training.text.sources.files import FileReader\n"
        "class Shouted(FileReader):\n"
        "    endings = ('.loud',)\n"
        "    def read(self):\n"
        "        yield from (Piece(line.strip().upper(), True) for _, line in self.lines())\n"
    )
    (tmp_path / "a.loud").write_text("one\ntwo\n")
    registry.kinds.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
        assert read(tmp_path / "a.loud")[0] == ["ONE", "TWO"]
    registry.kinds.cache_clear()
    assert read(tmp_path / "a.loud")[0] == ["one\ntwo\n"]  # of an unknown ending: text


def test_places_that_do_not_exist(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        open_source(DataArguments(corpus=str(tmp_path / "missing.txt")))
    with pytest.raises(UserError, match="does not exist"):
        open_source(DataArguments(corpus="missing.jsonl"))
    with pytest.raises(UserError, match=r"holds no .*\.txt"):
        open_source(DataArguments(corpus=str(tmp_path)))


def test_fingerprint_follows_the_content(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = open_source(DataArguments(corpus=str(path))).fingerprint()
    path.write_text("two")
    assert open_source(DataArguments(corpus=str(path))).fingerprint() != first
    path.write_text("one")
    assert open_source(DataArguments(corpus=str(path))).fingerprint() == first


PROSE = "The optimizer keeps a copy of the weights, and this copy is updated after every step of the training loop."


def test_prose_filter_keeps_sentences():
    docstring = (
        f"{PROSE}\n\n>>> f(1)\n1\n\nArgs:\n    x (int): a number\n\n    y = a @ b + c * d - e / f ** g.\n\n{PROSE}"
    )
    assert prose_paragraphs(docstring) == [PROSE, PROSE]


def test_modules_are_parsed_not_executed(tmp_path: Path):
    path = tmp_path / "evil.py"
    path.write_text(f'"""{PROSE}"""\nraise SystemExit("executed")\n\ndef f():\n    """Short."""\n')
    assert module_prose(str(path)) == [PROSE]
    path.write_text("def broken(:")
    assert module_prose(str(path)) == []


def records(count: int, start: int = 0) -> bytes:
    return as_jsonl([f"Document {i} of some length." for i in range(start, start + count)])


def test_every_file_of_a_folder_is_read_or_named(tmp_path: Path):
    import bz2

    import pyarrow as pa

    (tmp_path / "a.jsonl").write_bytes(records(2))
    (tmp_path / "B.JSONL").write_bytes(records(2, 2))
    (tmp_path / "c.ndjson").write_bytes(records(2, 4))
    (tmp_path / "d.jsonl.BZ2").write_bytes(bz2.compress(records(2, 6)))
    with pa.CompressedOutputStream(str(tmp_path / "e.jsonl.zst"), "zstd") as out:
        out.write(records(2, 8))
    (tmp_path / "notes.pdf").write_bytes(b"%PDF\0")
    (tmp_path / ".hidden.txt").write_text("x")
    texts, source = read(tmp_path)
    assert sorted(texts) == sorted(f"Document {i} of some length." for i in range(10))
    assert source.describe()["files"] == 5
    assert source.describe()["left_out"] == {"count": 2, "first": [".hidden.txt", "notes.pdf"]}
    (tmp_path / "f.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(60))
    with pytest.raises(UserError, match=r"f\.jsonl\.zst is damaged"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json", "a.ndjson.gz"])
def test_a_byte_order_mark_costs_nothing(tmp_path: Path, name: str):
    content = b"\xef\xbb\xbf" + (b"plain text\n" if name == "a.txt" else records(2))
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    texts, source = read(tmp_path / name)
    assert texts[0] == ("plain text\n" if name == "a.txt" else "Document 0 of some length.") and not source.bad.counts
    marked = source.fingerprint()
    content = content[3:]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name)[1].fingerprint() != marked


@pytest.mark.parametrize("text", ['[{"text": "one"}, {"text": "two"}]', '[\n {"text": "one"},\n {"text": "two"}\n]\n'])
def test_an_array_of_records(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    assert read(tmp_path / "a.json")[0] == ["one", "two"]
    (tmp_path / "a.json").write_text(text[:-3])
    with pytest.raises(UserError, match=r"a\.json begins as a JSON array and is none"):
        read(tmp_path / "a.json")


def test_what_is_no_text_or_has_other_columns_is_said_so(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"content": "x", "id": 1}\n' * 300)
    with pytest.raises(UserError, match=r"a\.jsonl has no column 'text', only content, id; set text_column"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.data").write_text('{"text": "x"}\n' * 3)
    with pytest.raises(UserError, match=r"a\.data holds JSON records; give it the ending \.jsonl"):
        read(tmp_path / "a.data")
    (tmp_path / "a.bin").write_bytes(bytes(100))
    with pytest.raises(UserError, match=r"a\.bin is no text; give .*\.jsonl"):
        read(tmp_path / "a.bin")
    (tmp_path / "a.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(UserError, match=r"a\.txt is UTF-16; convert it"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(UserError, match=r"b\.txt is plain text and has no columns; leave text_column out"):
        read(tmp_path / "b.txt", text_column="body")


@pytest.mark.parametrize("size", [20_000, MAX_LINE_BYTES + 1000])
def test_one_long_line_is_text_too(tmp_path: Path, size: int):
    text = ("Größe ☃ of a norm, " * (size // 20))[:size]
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces, source = read(tmp_path / "a.txt")
    assert "".join(pieces) == text and not source.bad.counts
    assert len(pieces) > 10 and max(map(len, pieces)) <= max(size // 10, 1 << 17)


def test_bad_records_are_counted_once_however_often_reading_is_taken_up(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b"".join(records(1, i) + b"{broken\n" for i in range(30)))
    _, whole = read(tmp_path / "a.jsonl")
    for stop in (1, 7, 29):
        first = open_source(DataArguments(corpus=str(tmp_path / "a.jsonl")))
        stream = first.pieces()
        for _ in range(stop):
            _, state = next(stream)
        second = open_source(DataArguments(corpus=str(tmp_path / "a.jsonl")))
        second.bad.restore(first.bad.state())
        rest = list(second.pieces(state))
        assert len(rest) == 30 - stop and second.bad.counts["malformed JSON"] <= whole.bad.counts["malformed JSON"] + 20


def test_a_large_file_is_known_by_its_content_and_hashed_once(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "REMEMBERED_BYTES", 10)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.txt").write_text("one text that is long enough")
    first = read(tmp_path / "a" / "c.txt")[1].fingerprint()
    copied = Path(shutil.copytree(tmp_path / "a", tmp_path / "b"))
    os.utime(copied / "c.txt", (1, 1))
    assert read(copied / "c.txt")[1].fingerprint() == first
    monkeypatch.setattr(files, "file_sha256", lambda path: pytest.fail("hashed twice"))
    assert read(tmp_path / "a" / "c.txt")[1].fingerprint() == first
    monkeypatch.undo()
    monkeypatch.setattr(files, "REMEMBERED_BYTES", 10)
    (tmp_path / "a" / "c.txt").write_text("one text that is long enougH")
    assert read(tmp_path / "a" / "c.txt")[1].fingerprint() != first


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("A.TSV", "\t"), ("a.csv.gz", ",")])
def test_csv(tmp_path: Path, name: str, separator: str):
    rows = [("id", "text"), ("1", f"one{separator} and more"), ("2", 'two "lines"\nof text'), ("3", "")]
    with io.StringIO(newline="") as out:
        csv.writer(out, delimiter=separator).writerows(rows)
        content = out.getvalue().encode() + b"4\r\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    texts, source = read(tmp_path / name)
    assert texts == [rows[1][1], rows[2][1]]
    assert source.bad.counts == {"empty": 1, "another number of values than the first line": 1}
    with pytest.raises(UserError, match="has no column 'body', only id, text; set text_column"):
        read(tmp_path / name, text_column="body")


def test_a_damaged_csv_is_named(tmp_path: Path):
    (tmp_path / "a.csv").write_text('text\n"never closed\n')
    with pytest.raises(UserError, match=r"a\.csv is damaged near line 1"):
        read(tmp_path / "a.csv")
