# SPDX-License-Identifier: Apache-2.0
"""The sources of a recipe: its corpus, its own validation text, and what can be known of both before they are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ...common.corpus import corpus_sources
from ...common.errors import UserError
from ..keys.arguments import DataArguments
from ..keys.corpora import CorpusEntry, corpus_entries, entry_values
from .chat import named_template
from .sources.base import Source
from .sources.files import Files
from .sources.registry import open_source


def open_corpus(data: DataArguments) -> Source:
    """The source of the training text.

    Raises:
        UserError: it does not exist, or cannot be read as the recipe says.
    """
    source = open_source(data)
    if data.sample_by != "document" and not source.has_plain_text:
        raise UserError(
            f"key sample_by is {data.sample_by}, which is for plain text, and the corpus has none: a record is a "
            "document; leave sample_by out"
        )
    return source


def open_validation(data: DataArguments, corpus: Source) -> Source | None:
    """The recipe's own validation text; None where pieces of the corpus are held out.

    Raises:
        UserError: as for the corpus; or some of it is trained on.
    """
    if data.validation_corpus is None:
        return corpus.validation()
    source = open_source(dataclasses.replace(data, corpus=data.validation_corpus, validation_corpus=None))
    trained = corpus.contents()
    for mark, name in source.contents().items():
        if mark in trained:
            raise UserError(
                f"validation_corpus: {name} is trained on as well, as {trained[mark]}; give other text, or leave "
                "validation_corpus out, and pieces are held out"
            )
    return source


def look(data: DataArguments) -> None:
    """Refuse what can be refused without reading text, network or a tokenizer: local places, columns, the template.

    Raises:
        UserError: naming the first that is missing or does not fit.
    """
    named_template(data)
    values = [(data.corpus, data)]
    if data.validation_corpus is not None:
        values.append((data.validation_corpus, dataclasses.replace(data, validation_corpus=None)))
    places: dict[Path, str] = {}
    for key, (value, keys) in zip(("corpus", "validation_corpus"), values, strict=False):
        for entry in corpus_entries(value):
            if entry.name != "embedded" and Files.claims(entry.name):
                source: Any = Files.open(entry.arguments(keys), entry.name)
                _require_once(source, key, places)


def _require_once(source: Files, key: str, places: dict[Path, str]) -> None:
    for path in source.files:
        if (found := path.resolve()) in places and path.stat().st_size:
            raise UserError(f"key {key}: {path} is read already, by the key {places[found]}; name it once")
    places.update({path.resolve(): key for path in source.files})


def as_begun(data: DataArguments, description: dict[str, Any]) -> DataArguments:
    """The keys with the commits that a ``data.json`` says the corpus had: the Hub may have moved on since."""
    commits = {
        (one.get("name"), one.get("config"), one.get("split"), one.get("revision")): one["commit"]
        for one in corpus_sources(description.get("corpus"))
        if one.get("kind") == "hub" and one.get("commit")
    }

    def pinned(entry: CorpusEntry) -> CorpusEntry:
        keys = entry.arguments(data)
        commit = commits.get((entry.name, keys.corpus_config, keys.corpus_split, keys.corpus_revision))
        return entry if commit is None else dataclasses.replace(entry, own={**entry.own, "corpus_revision": commit})

    if not commits:
        return data
    if isinstance(data.corpus, list):
        return dataclasses.replace(data, corpus=[entry_values(pinned(e)) for e in corpus_entries(data.corpus)])
    return pinned(CorpusEntry(data.corpus, None, {})).arguments(data)
