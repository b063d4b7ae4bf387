# SPDX-License-Identifier: Apache-2.0
"""IFEval's sentence model: found, fetched, or done without, never in silence.

The harness counts sentences and words of IFEval answers with NLTK's ``punkt_tab``, which it downloads. Without it, it
fails after all answers have been generated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..common.errors import UserError

TASK_WORD = "ifeval"
# Instructions whose check asks NLTK for the sentence model.
NEEDS_SENTENCES = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
ADVICE = (
    "put NLTK's punkt_tab into $NLTK_DATA/tokenizers/punkt_tab, or run once with a network: "
    "python -m nltk.downloader punkt_tab"
)


def has_sentence_model() -> bool:
    """Whether NLTK finds ``punkt_tab`` on this machine."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True


def fetch_sentence_model() -> bool:
    """Whether ``punkt_tab`` is there, after one attempt to download it unless offline mode is on."""
    import huggingface_hub.constants
    import nltk

    if has_sentence_model():
        return True
    return (
        not huggingface_hub.constants.HF_HUB_OFFLINE and nltk.download("punkt_tab", quiet=True) and has_sentence_model()
    )


def scorable(documents: Iterable[dict[str, Any]]) -> list[int]:
    """Indices of the IFEval documents that can be scored without the sentence model."""
    return [i for i, doc in enumerate(documents) if not set(doc["instruction_id_list"]) & set(NEEDS_SENTENCES)]


def refuse_without_sentence_model(words: Sequence[str]) -> None:
    """For the stock command, which cannot leave documents out: fail before the work instead of after it.

    Raises:
        UserError: the command line asks for IFEval and there is no sentence model.
    """
    names = {name for word in words for name in word.split(",")}
    asked = bool(names & {"leaderboard", "leaderboard_instruction_following"}) or any(TASK_WORD in n for n in names)
    if asked and words[:1] not in (["ls"], ["validate"]) and not fetch_sentence_model():
        raise UserError(
            f"IFEval needs a sentence model that is not here: {ADVICE}; `ibnorm-hf eval` scores the rest without it"
        )
