# SPDX-License-Identifier: Apache-2.0
"""The private parts of transformers that training relies on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .private import Parts

SEEN = "5.17 to 5.24"
# Methods of Trainer that ours overrides or calls. That those are still *called* is checked by what they leave behind.
_OF_TRAINER = (
    "_get_train_sampler",
    "_get_grad_norm",
    "_prepare_inputs",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_load_scaler",
    "get_batch_samples",
    "get_decay_parameter_names",
    "floating_point_ops",
)
TRAINING = Parts(
    "transformers",
    SEEN,
    (
        *(f"transformers.trainer:Trainer.{name}" for name in _OF_TRAINER),
        "transformers.masking_utils:find_packed_sequence_indices",
    ),
)

CHAT = Parts("transformers", SEEN, ("transformers.utils.chat_template_utils:render_jinja_template",))


def render_template(
    template: str, messages: list[dict[str, Any]], special: dict[str, Any], *, marks: bool = False, prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The text that a chat template makes of messages, in the sandbox of transformers.

    Args:
        template: Jinja.
        messages: turns, {role, content, ...}.
        special: special tokens of the tokenizer by their names, which the template may use.
        marks: also find what stands between ``{% generation %}`` and ``{% endgeneration %}``.
        prompt: end with the beginning of a turn of the assistant.

    Returns:
        The text, and with ``marks`` the ranges of characters (first, last) between them.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        return_assistant_tokens_mask=marks,
        add_generation_prompt=prompt,
        **special,
    )
    return rendered[0][0], rendered[1][0] if marks else []


@contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """Spare the search for several packed sequences in a row, for which every forward pass waits for its device.

    Blocks are read as one sequence each, which the search would find as well.
    """
    from transformers import masking_utils

    real = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = real


def commit_of(config: Any) -> str | None:
    """The commit of the Hub that a config was loaded from; None for one of a folder."""
    commit: str | None = getattr(config, "_commit_hash", None)
    return commit
