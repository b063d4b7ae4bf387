# SPDX-License-Identifier: Apache-2.0
"""JSON, YAML, lists of files and credentials: what is read, what is refused, and in which words."""

import json
import math
import os
import time

import pytest
import yaml

from ibnorm_hf.common import strict_json, strict_yaml
from ibnorm_hf.common.errors import UserError, did_you_mean, one_line
from ibnorm_hf.common.listing import CHECKSUMS, list_files, problems, read_listing, write_listing
from ibnorm_hf.common.paths import append_json_line, write_json
from ibnorm_hf.common.secrets import hide, hide_in_command, holds_secret

TOKEN = "hf_" + "a1B2" * 8


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


# ---- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "unreadable"),
        (b"{", "unreadable"),
        (b"[]", "a JSON object"),
        (b"\xff\xfe", "unreadable"),
        (b'{"a": ' + b"[" * 100_000, "unreadable"),
        (b'{"a": ' + b"9" * 5000 + b"}", "unreadable"),
    ],
)
def test_a_file_that_is_no_json_object_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert words in refused(strict_json.read_object, path)


def test_missing_large_and_irregular_files_are_one_sentence(tmp_path, monkeypatch):
    assert "is missing" in refused(strict_json.read_object, tmp_path / "a.json")
    assert "unreadable" in refused(strict_json.read_object, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "unreadable" in refused(strict_json.read_object, tmp_path / "pipe")
    monkeypatch.setattr(strict_json.read_text, "__defaults__", (10,))
    (tmp_path / "large.json").write_text('{"a": "bcdefgh"}')
    assert "more than 10 bytes" in refused(strict_json.read_object, tmp_path / "large.json")


def test_what_is_no_number_is_none_and_never_written(tmp_path):
    assert strict_json.loads('[NaN, -Infinity, 1e999, 2.5, "\\ud800x"]') == [None, None, None, 2.5, "?x"]
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError):
            write_json(tmp_path / "a.json", {"a": value})
        with pytest.raises(ValueError):
            append_json_line(tmp_path / "a.jsonl", {"a": value})
        assert strict_json.plain({1: (value, "b")}) == {"1": [None, "b"]}
    assert not list(tmp_path.iterdir())


# ---- YAML --------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text, words",
    [
        (BOMB, "aliases"),
        ("a: 1\na: 2\n", "there twice"),
        ("a: !!python/object/apply:os.system [true]\n", "tags"),
        ("a: !!binary aGk=\n", "tags"),
        ("[" * 50 + "]" * 50, "levels deep"),
        ("a: " + "1:1" * 200, "too long"),
        ("a: " + "9" * 200, "too long"),
        ("? [a]\n: 1\n", "must be a word"),
        ("a: [", "not valid YAML"),
        ("a: b\n" * 100_000, "more than"),
    ],
)
def test_yaml_beyond_plain_values_is_refused_at_once(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    started = time.monotonic()
    assert words in refused(strict_yaml.read_mapping, path)
    assert time.monotonic() - started < 10  # a bomb takes for ever


def test_words_are_read_by_the_same_rules():
    assert strict_yaml.scalar("1e-5") == 1e-5 and strict_yaml.scalar("[1, a]") == [1, "a"]
    assert strict_yaml.scalar("2001-01-01") == "2001-01-01" and strict_yaml.scalar("a: b: c") == "a: b: c"
    assert "aliases" in refused(strict_yaml.scalar, "[&a x, *a]")
    assert "tags" in refused(strict_yaml.scalar, "!!set {a}")


def test_what_is_written_can_be_read_again():
    same = [1, "x"]
    content = {"a": same, "b": same, "c": {"d": None, "e": 1.5, "f": "1e-5"}}
    text = strict_yaml.dumps(content)
    assert "&" not in text and strict_yaml.loads(text, "here") == content == yaml.safe_load(text)


# ---- lists of files ----------------------------------------------------------------------------------------------


def test_links_are_never_followed(tmp_path):
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    (folder / "sub").mkdir(parents=True)
    secret.write_text("secret")
    (folder / "sub" / "a").write_text("a")
    write_listing(folder, CHECKSUMS, {})
    assert list_files(folder) == ["checksums.json", "sub/a"] and not list(problems(folder, CHECKSUMS))
    for place, target in (("b", secret), ("sub/c", tmp_path), ("d", tmp_path / "nowhere"), ("e", folder / "sub" / "a")):
        (folder / place).symlink_to(target)
        assert "is a link" in refused(list_files, folder)
        assert "is a link" in refused(lambda: list(problems(folder, CHECKSUMS)))
        (folder / place).unlink()
    (tmp_path / "other").symlink_to(folder)
    assert list_files(tmp_path / "other") == ["checksums.json", "sub/a"]  # the folder itself is the user's word


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "a\\b", "", "a" * 2000, "a\0b"])
def test_a_list_names_nothing_outside_its_folder(tmp_path, name):
    (tmp_path / CHECKSUMS).write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": "0"}}}))
    assert "outside its folder" in refused(read_listing, tmp_path / CHECKSUMS)


# ---- credentials -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "api_org_" + "x" * 30,
        "sk-proj-" + "a1" * 20,
        "ghp_" + "a1" * 18,
        "AKIA" + "A1" * 8,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_every_writer_hides_what_looks_like_a_credential(tmp_path, secret):
    write_json(tmp_path / "a.json", {"a": f"see {secret}."})
    append_json_line(tmp_path / "a.jsonl", {"a": secret})
    for path in tmp_path.iterdir():
        assert secret not in path.read_text() and "<hidden>" in path.read_text()


def test_the_value_of_a_variable_named_after_a_credential_is_hidden(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "q" * 20)
    assert hide(f"a {'q' * 20} b") == "a <hidden> b"
    assert hide("https://me:word@host/x") == "https://<hidden>@host/x"


def test_ordinary_words_stay():
    text = "ibnorm-l ask-me disk-usage hf_hub 0123456789abcdef0123456789abcdef01234567 http://127.0.0.1:80/a@b"
    assert hide(text) == text and not holds_secret(text)
    words = ["--token_budget", "5", "--hub_token", "x", "--password=y", "--name", TOKEN]
    hidden = ["--token_budget", "5", "--hub_token", "<hidden>", "--password=<hidden>", "--name", "<hidden>"]
    assert hide_in_command(words) == hidden


def test_sentences_hold_no_control_bytes():
    assert one_line("a\nb\x1b[31mc") == "a b\N{REPLACEMENT CHARACTER}[31mc"
    assert did_you_mean("epoch", ["epochs", "steps"]) == "; did you mean 'epochs'?" and did_you_mean("q", ["abc"]) == ""
