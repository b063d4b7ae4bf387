# SPDX-License-Identifier: Apache-2.0
"""What fits the model that was loaded: what the harness would refuse half-way is refused here, before the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length

from ..common.errors import UserError


def require_fit(lm: Any, tasks: Mapping[str, Any], config: EvaluatorConfig) -> None:
    """Hold the options against the model and the tasks.

    Raises:
        UserError: there is no such chat template, the model has fewer positions than ``max_length``, a task has fewer
            examples than ``--num_fewshot``, or ``--samples`` names a question that it does not have.
    """
    positions = resolve_max_length(lm.config, lm.tokenizer)
    if lm.max_length > positions:
        raise UserError(
            f"eval: --model_args max_length={lm.max_length} is beyond the model's {positions} positions; leave it out"
        )
    if config.apply_chat_template:
        _require_template(lm, config.apply_chat_template)
    for name in config.samples or {}:
        if name not in tasks:
            raise UserError(f"eval: --samples names {name}, which is not among the tasks ({', '.join(tasks)})")
    for name, task in tasks.items():
        _require_examples(name, task, config.num_fewshot)
        wanted, there = (config.samples or {}).get(name, []), len(task.eval_docs)
        beyond = [index for index in wanted if not isinstance(index, int) or not 0 <= index < there]
        if beyond:
            raise UserError(f"eval: --samples asks question {beyond[0]} of {name}, which has 0 to {there - 1}")


def _require_template(lm: Any, name: Any) -> None:
    templates = lm.tokenizer.chat_template
    known = templates if isinstance(templates, dict) else {"default": templates} if templates else {}
    if not known:
        raise UserError("eval: --apply_chat_template needs a tokenizer with a chat template, and this one has none")
    if isinstance(templates, dict) and isinstance(name, str) and name not in known:
        raise UserError(f"eval: --apply_chat_template {name} is unknown; the tokenizer has {', '.join(known)}")


def _require_examples(name: str, task: Any, asked: int | None) -> None:
    default = task.get_config("num_fewshot") or 0
    shots = default if asked is None or default == 0 else asked
    if shots == 0:
        return
    there = sum(1 for _ in task.fewshot_docs())
    if shots > there:
        origin = "its default" if asked is None else "--num_fewshot"
        raise UserError(f"eval: {name} has {there} examples to give, and {origin} is {shots}; give at most {there}")


def clamp_generation(lm: Any, task: Any, gen_kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int] | None]:
    """Options of generation that leave room for a prompt, and what was changed.

    A task that asks for as many new tokens as the model has positions, or more, gets half of them; the other half is
    left to the prompt, which the harness cuts from the left. Where less is asked for, nothing changes.

    Returns:
        the options to give, and ``{"asked": tokens, "given": tokens}`` or None.
    """
    if task.get_config("output_type") != "generate_until":
        return gen_kwargs, None
    merged = {**(task.get_config("generation_kwargs") or {}), **gen_kwargs}
    asked = int(normalize_gen_kwargs(merged, lm.max_gen_toks)["max_gen_toks"])
    if asked < lm.max_length:
        return gen_kwargs, None
    given = lm.max_length // 2
    return {**gen_kwargs, "max_gen_toks": given}, {"asked": asked, "given": given}
