# SPDX-License-Identifier: Apache-2.0
"""What is asked of the harness: its own options, held against the model that the user named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.utils import simple_parse_args_string

from ..common.errors import UserError
from ..common.private_lm_eval import parse_words
from .target import Target

# Model arguments that would put other weights under this model's name.
_OTHER_MODEL = ("pretrained", "peft", "delta", "subfolder")
_STOCK_ONLY = ("wandb_args", "trackio_args", "hf_hub_log_args", "check_integrity")


def configure(words: Sequence[str], target: Target, names: Sequence[str], output: Path) -> EvaluatorConfig:
    """The harness's own configuration: every option of ``lm-eval run`` means what it does there.

    Args:
        words: the user's, without the model, the tasks and the output folder; these stay values and are never text
            that is split again.

    Raises:
        UserError: an option that the harness refuses, or one that names another model; unknown words end in the
            harness's usage message and exit code 2.
    """
    given = parse_words(words)
    for key in _STOCK_ONLY:
        if getattr(given, key, None):
            raise UserError(f"eval: --{key} belongs to the stock command; use `python -m ibnorm_hf.evaluation run`")
    try:
        file = EvaluatorConfig.load_yaml_config(given.config) if given.config else {}
        _check_model(given.model or file.get("model"))
        given.model_args = {**target.model_args, **_extra(file.get("model_args")), **_extra(given.model_args)}
        given.model, given.tasks, given.output_path = "ibnorm", list(names), str(output)
        if not hasattr(given, "batch_size"):
            given.batch_size = file.get("batch_size", "auto")
        config = EvaluatorConfig.from_cli(given)
        _check_numbers(config)
        return config
    except UserError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"eval: {' '.join(str(error).split())}") from None


def _check_numbers(config: EvaluatorConfig) -> None:
    limit, shots, size = config.limit, config.num_fewshot, str(config.batch_size)
    if limit is not None and not (isinstance(limit, int | float) and 0 < limit < float("inf")):
        raise UserError(f"eval: --limit {limit} asks no question; give a whole number, or a share below 1")
    if limit is not None and limit > 1 and limit != int(limit):
        raise UserError(f"eval: --limit {limit:g} is neither a whole number nor a share below 1; give one of them")
    if shots is not None and shots < 0:
        raise UserError(f"eval: --num_fewshot {shots} is below 0; give a number of examples, or leave it out")
    if not size.startswith("auto") and not (size.isdigit() and int(size) > 0):
        raise UserError(f"eval: --batch_size {size} is no whole number of at least 1; give one, or auto")


def _check_model(name: str | None) -> None:
    if name not in (None, "ibnorm"):
        raise UserError(f"eval: --model {name} belongs to the stock command; use `python -m ibnorm_hf.evaluation run`")


def _extra(model_args: Any) -> dict[str, Any]:
    """Model arguments beside those that say which model it is."""
    extra = simple_parse_args_string(model_args) if isinstance(model_args, str) else dict(model_args or {})
    for key in _OTHER_MODEL:
        if key in extra:
            raise UserError(
                f"eval: --model_args {key}={extra[key]} would put another model's results under this one's name; name "
                "that model first instead: ibnorm-hf eval MODEL"
            )
    return extra
