# SPDX-License-Identifier: Apache-2.0
"""Conversations -> text by a chat template, and which of its characters the assistant says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from ...common.errors import UserError, one_line
from ...common.private_transformers import CHAT, render_template
from ...common.strict_json import read_text
from ..keys.arguments import DataArguments
from .encode import Item
from .sources.base import BadRecords, Piece
from .sources.records import ASSISTANT

MAX_TEMPLATE_BYTES = 256 << 10
# The format of OpenAI's ChatML; what the assistant says, and the end of its turn, is marked.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TEMPLATES = {"chatml": CHATML}
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TRIAL = [{"role": "user", "content": "One question."}, {"role": ASSISTANT, "content": "One answer."}]


def named_template(data: DataArguments) -> str | None:
    """The template that the key ``chat_template`` names; None where it leaves that to the tokenizer.

    Raises:
        UserError: it names neither a template nor a file with one.
    """
    name = data.chat_template
    if name is None or name in _TEMPLATES:
        return _TEMPLATES.get(str(name))
    path = Path(os.path.expanduser(name))
    if not os.path.isfile(path):
        raise UserError(f"key chat_template: {name} is no file; give a file with a Jinja template, or chatml")
    return read_text(path, MAX_TEMPLATE_BYTES)


class Chat:
    """What makes text of conversations: a template, with the special tokens of a tokenizer.

    Where a template marks what the assistant generates, the marks decide what is learned. Elsewhere it is what the text
    up to a turn of the assistant has more than the text before it, with the header of the turn.
    """

    def __init__(self, template: str, special: dict[str, Any]) -> None:
        CHAT.require()
        self.template, self.special = template, special
        self.marked = _MARKS.search(template) is not None
        try:
            text, spans = self.render(_TRIAL, "a conversation of one question and one answer")
        except UserError:
            raise
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template is no Jinja template: {one_line(error)}, line {error.lineno}; correct it, or set "
                "chat_template to chatml"
            ) from None
        except _FAULTS as error:
            raise UserError(
                f"the chat template fails at one question and its answer: {one_line(error)}; correct it, or set "
                "chat_template to chatml"
            ) from None
        if "One answer." not in "".join(text[first:last] for first, last in spans):
            raise UserError(
                "the chat template leaves out what the assistant says, or its generation marks do; correct it, or set "
                "chat_template to chatml"
            )

    def items(self, piece: Piece, bad: BadRecords) -> list[Item] | None:
        """What is tokenized of a conversation: its text, and the assistant's part of it. A `batches.Render`."""
        try:
            text, spans = self.render(piece.messages or [], piece.where)
        except UserError:
            raise
        except _FAULTS as error:
            bad.add(piece.where, f"chat template: {one_line(error, 80)}")
            return None
        if not spans:
            bad.add(piece.where, "chat template: nothing of the assistant is left")
            return None
        piece.predicted_bytes = sum(len(text[first:last].encode("utf-8")) for first, last in spans)
        return [(text, spans)]

    def render(self, messages: list[dict[str, Any]], where: str) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the ranges of characters that the assistant says.

        Raises:
            UserError: without marks, the text of a beginning is not the beginning of the text.
        """
        if self.marked:
            text, found = render_template(self.template, messages, self.special, marks=True)
            return text, [(int(first), int(last)) for first, last in found if last > first]
        text, _ = render_template(self.template, messages, self.special)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before, _ = render_template(self.template, messages[:number], self.special, prompt=True)
            upto, _ = render_template(self.template, messages[: number + 1], self.special)
            if not (text.startswith(upto) and upto.startswith(before)):
                raise UserError(
                    f"the chat template renders the beginning of a conversation otherwise than the whole, at turn "
                    f"{number + 1} of {where}, so where the assistant speaks cannot be told; put its words between "
                    "{% generation %} and {% endgeneration %} in the template, or set chat_template to chatml"
                )
            if len(upto) > len(before):
                spans.append((len(before), len(upto)))
        return text, spans


# What a template raises that cannot take a conversation: its own refusals, and operations on what is not there.
_FAULTS = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)


def open_chat(data: DataArguments, tokenizer: Any) -> Chat | None:
    """What makes text of the recipe's conversations; None where it has none. The tokenizer keeps the template.

    Raises:
        UserError: there is no template, or none that can be used, or the tokenizer cannot say where its tokens stand.
    """
    if data.messages_column is None:
        return None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"tokenizer '{data.tokenizer}' does not say where its tokens stand in a text, which messages_column needs; "
            "take one with a tokenizer.json"
        )
    template = named_template(data)
    if template is None:
        try:
            template = tokenizer.get_chat_template()
        except (ValueError, AttributeError):
            raise UserError(
                f"tokenizer '{data.tokenizer}' has no chat template; set chat_template to a file with one, or to chatml"
            ) from None
    else:
        tokenizer.chat_template = template
    return Chat(str(template), dict(tokenizer.special_tokens_map))
