# SPDX-License-Identifier: Apache-2.0
"""What a credential looks like: one set of patterns for all that a run writes and all that is published."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

HIDDEN = "<hidden>"
_NAMES = ("token", "secret", "password", "passwd", "api_key", "apikey", "access_key", "credential")
_NO_SECRETS = ("token_budget", "validation_tokens", "tokenizer", "tokenizer_vocab_size")
_PATTERN = re.compile(
    r"\b(?:"
    r"hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|sk-(?:[a-z]+-)*[A-Za-z0-9_]{16,}"  # model providers
    r"|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"  # forges
    r"|AKIA[0-9A-Z]{16}|xox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # a signed web token
    r")"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"  # a name and a password in an address
)


def hide(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with everything that looks like a credential, or is one of ``secrets``, replaced."""
    for secret in (*secrets, *_of_environment()):
        if secret:
            text = text.replace(secret, HIDDEN)
    return _PATTERN.sub(HIDDEN, text)


def holds_secret(text: str, secrets: Iterable[str] = ()) -> bool:
    """Whether `hide` would change the text."""
    return hide(text, secrets) != text


def hide_in_command(words: list[str]) -> list[str]:
    """A command line, with the value of each option whose name speaks of a credential replaced as well."""
    out: list[str] = []
    hiding = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = word.startswith("--") and _names_secret(name.lstrip("-"))
        if hiding and not word.startswith("--"):
            out.append(HIDDEN)
        elif secret and equals:
            out.append(f"{name}={HIDDEN}")
        else:
            out.append(hide(word))
        hiding = secret and not equals
    return out


def _names_secret(name: str) -> bool:
    name = name.lower().replace("-", "_")
    return any(word in name for word in _NAMES) and name not in _NO_SECRETS


def _of_environment() -> list[str]:
    """Values of variables that are named after credentials; short ones could be any word."""
    return [
        value
        for name, value in os.environ.items()
        if len(value) >= 16 and _names_secret(name) and not value.startswith(("/", "~", "http"))
    ]
