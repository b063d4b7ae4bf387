# SPDX-License-Identifier: Apache-2.0
"""A pretrained model gets other norms, with a report of what changed and a measurement of what it cost."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..common.errors import UserError, did_you_mean, one_line
from ..common.nats import mean_nats
from ..common.paths import write_json
from ..common.run import CARD, is_model, is_run, model_folder
from ..common.strict_json import plain
from ..common.vocabulary import beyond
from ..modeling.configuration_ibnorm import NormFlags
from ..modeling.replace import replace_norms
from ..modeling.report import ReplacementReport
from ..pretrained import as_registered, load_pretrained, registered_config
from .card import write_card
from .licence import copy_files, terms_of
from .processing import image_processor_settings

_KEPT = ("path", "old_class", "new_class", "carried", "dropped", "created", "change")  # of a norm, in conversion.json


@dataclass(frozen=True)
class Conversion:
    """What ``convert`` did: the report, the registered class it was saved as (None: not saved), nats a token."""

    report: ReplacementReport
    saved_as: str | None
    tokens: int
    before: float | None
    after: float | None

    def lines(self) -> list[str]:
        """For people: the report, the measurement, and what it means."""
        measured = "NLL not measured: name a text with --text"
        if self.before is not None and self.after is not None:
            measured = f"NLL {self.before:.4f} -> {self.after:.4f} nats a token, on {self.tokens} tokens"
        changed = "the model computes another function than before and wants further training"
        if all(r.change.endswith("same function") for r in self.report.replacements):
            changed = "the norms compute what they computed before"
        return [str(self.report), measured, changed]


def convert(
    source: str,
    target: str | Path,
    *,
    norm_type: str,
    text: str | Path | None = None,
    max_tokens: int = 2048,
    **flags: Any,
) -> Conversion:
    """Load a pretrained model, swap its norms, measure, and save it as the registered type of its architecture.

    Args:
        source: a folder, a Hub id, or a GGUF file; whatever transformers loads.
        target: a folder that does not exist yet. ``conversion.json`` beside the weights keeps the report.
        norm_type: one of ``list_norms()``.
        text: a UTF-8 file; its first ``max_tokens`` tokens are scored before and after. Language models only.
        max_tokens: how much of the text is scored.
        flags: any other flag of ``NormFlags``; one that is absent or None takes the default of the architecture.

    Raises:
        UserError: the source cannot be loaded, the target is taken, or a flag is outside its domain.
    """
    target = Path(target)
    if target.exists():
        raise UserError(f"{target} exists; choose a new folder")
    loaded = load_pretrained(source)
    model = loaded.model
    pictures = None if loaded.image_processor is None else image_processor_settings(loaded.image_processor)
    ids = _tokens(loaded.tokenizer, text, max_tokens)
    embedding: Any = model.get_input_embeddings()
    if ids is not None and (too_many := beyond(loaded.tokenizer, len(embedding.weight))):
        raise UserError(f"tokenizer of {source} has {too_many}, more than the model has rows; leave --text out")
    before = nats_per_token(model, ids)
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        config = registered_config(model.config, norm_type=norm_type, **given)
        options = _options(given) if config is None else config.norm_options()
        report = replace_norms(model, norm_type, **options)
        converted = as_registered(model, config)
    except Exception as error:  # strict configs raise kinds of their own; each wraps one sentence
        raise UserError(one_line(error.__cause__ or error)) from None
    after = nats_per_token(model, ids)
    tokens = 0 if ids is None else ids.numel() - 1
    saved_as = None if converted is None else type(converted).__name__
    conversion = Conversion(report, saved_as, tokens, before, after)
    if converted is not None:
        converted.to(dtype=loaded.dtype)  # type: ignore[call-arg]
        converted.save_pretrained(target)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(target)
        if pictures is not None:
            write_json(target / IMAGE_PROCESSOR_NAME, pictures)
        _write_report(conversion, source, target)
        _carry_terms(source, target)
    return conversion


def _options(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags as ``replace_norms`` takes them, for an architecture whose config has none."""
    known = {f.name for f in fields(NormFlags)} - {"norm_type", "norm_embedding_scale"}
    for name in flags:
        if name not in known:
            raise UserError(f"there is no norm flag '{name}'{did_you_mean(name, known)}")
    options = {**flags, "exclude": flags.get("norm_exclude", ())}
    options.pop("norm_exclude", None)
    return options


def nats_per_token(model: PreTrainedModel, ids: torch.Tensor | None, window: int = 512) -> float | None:
    """Mean negative log likelihood (nats) of ids (length,), in windows of at most ``window``; None without ids."""
    if ids is None:
        return None
    length = min(window + 1, getattr(model.config, "max_position_embeddings", window + 1))
    windows = [ids[start : start + length][None] for start in range(0, len(ids) - 1, length - 1)]
    return mean_nats(model, zip(windows, windows, strict=True))


def _tokens(tokenizer: Any, text: str | Path | None, max_tokens: int) -> torch.Tensor | None:
    if text is None:
        return None
    if tokenizer is None:
        raise UserError("--text needs a tokenizer, and the source has none; leave --text out")
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"text {text} cannot be read: {error}") from None
    # Four bytes a token are usual; sixteen leave room without tokenizing a corpus to score its beginning.
    ids = tokenizer(content[: 16 * max_tokens], return_tensors="pt")["input_ids"][0][:max_tokens]
    if len(ids) < 2:
        raise UserError(f"text {text} is too short to score; name a longer one")
    return ids


def _carry_terms(source: str, target: Path) -> None:
    """The licence of the weights goes on: its files, and a card that says it."""
    if is_model(source) or is_run(source):
        copy_files(terms_of(source), target)
        # The card's licence is read from the base's card, which stands for the new one until then.
        card = model_folder(source) / CARD
        if card.is_file():
            shutil.copyfile(card, target / CARD)
    write_card(target)
    (target / f"{CARD}.before").unlink(missing_ok=True)


def _write_report(conversion: Conversion, source: str, target: Path) -> None:
    content = {
        "source": Path(source).name if Path(source).exists() else source,
        "norm_type": conversion.report.norm_type,
        "class": conversion.saved_as,
        "tokens": conversion.tokens,
        "nll_before": conversion.before,
        "nll_after": conversion.after,
        "replacements": [{key: getattr(r, key) for key in _KEPT} for r in conversion.report.replacements],
    }
    write_json(target / "conversion.json", plain(content))
