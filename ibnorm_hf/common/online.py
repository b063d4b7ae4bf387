# SPDX-License-Identifier: Apache-2.0
"""Whether the Hub answers, found out in seconds: its libraries try again for a minute before they give up."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

PATIENCE = 5.0  # seconds for an answer of any kind
_KEPT = 60.0  # seconds that an answer is believed
_answers: dict[str, tuple[float, bool]] = {}


def hub_answers() -> bool:
    """Whether the Hub is to be asked at all and answers within ``PATIENCE``; remembered for a minute."""
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    endpoint = constants.ENDPOINT
    when, known = _answers.get(endpoint, (-_KEPT, False))
    if time.monotonic() - when < _KEPT:
        return known
    found: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=PATIENCE)
            found.append(True)  # any answer, be it a refusal
        except Exception:  # no name, no route, no certificate: every library below has kinds of its own
            found.append(False)

    # A thread, as the search for the endpoint's address knows no limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    answer = bool(found and found[0])
    _answers[endpoint] = (time.monotonic(), answer)
    return answer


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside the block, the libraries of Hugging Face take what their caches hold where the Hub does not answer."""
    if hub_answers():
        yield
        return
    places = [(constants, "HF_HUB_OFFLINE")]
    if "datasets" in sys.modules:
        places.append((sys.modules["datasets.config"], "HF_HUB_OFFLINE"))
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def reason(error: object) -> str:
    """Why something of the Hub could not be had, in at most 200 characters of whole words."""
    if not hub_answers():
        if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE"):
            return "it is not here, and HF_HUB_OFFLINE forbids to ask the Hub"
        return f"it is not here, and the Hub ({constants.ENDPOINT}) does not answer"
    return textwrap.shorten(str(error).rstrip(". \n"), 200, placeholder=" ...")
