# SPDX-License-Identifier: Apache-2.0
"""The harness model ``ibnorm``: HFLM with our model types registered, safe defaults, and errors a user can read.

Importing this module is what registers it with lm_eval (the harness has no entry points).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

# Registers our model types with the Auto classes; the `ibnorm-hf` program does not do so by itself.
from .. import registration  # noqa: F401
from ..common.base import require_recorded_weights
from ..common.errors import UserError
from ..common.next_token import require_next_token
from ..common.online import reason
from ..common.vocabulary import beyond
from .target import resolve

_log = logging.getLogger(__name__)
_CPU_LOGITS = 2**28  # floats of logits a batch may take on a CPU: 1 GiB in fp32


@register_model("ibnorm")
class IBNormLM(HFLM):
    """HFLM for this package's models and, with the same settings, for vanilla ones.

    Args:
        pretrained: run folder, model folder, PEFT adapter folder, Hub name, or a model in memory.
        backend: ``causal``; the harness could only guess it for a model type of ours.
        dtype: ``auto``, the dtype of the checkpoint; float32 for the base of an adapter that a run trained.
        device: a CUDA device if there is one, else the CPU.
        batch_size: ``auto``: found by trial on a GPU; on a CPU, where running out of memory kills the process, chosen
            so that a batch's logits take at most 1 GiB.
        kwargs: everything else that HFLM takes; ``mixed_precision_dtype`` is by default that of the run.

    Raises:
        UserError: no such model, one whose tokens see those that follow, no tokenizer, or a tokenizer with ids that the
            embedding has no rows for.
    """

    def __init__(
        self,
        pretrained: Any,
        backend: str = "causal",
        dtype: str | torch.dtype | None = "auto",
        device: str | None = None,
        batch_size: int | str | None = "auto",
        **kwargs: Any,
    ) -> None:
        if isinstance(pretrained, str):
            target = resolve(pretrained)
            pretrained = target.pretrained
            kwargs = {**{k: v for k, v in target.model_args.items() if k != "pretrained"}, **kwargs}
            dtype = target.dtype if dtype in (None, "auto") else dtype
            kwargs.setdefault("mixed_precision_dtype", target.autocast)
            if "gguf_file" not in kwargs:
                kwargs.setdefault("use_safetensors", True)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        size = str(1 if batch_size is None else batch_size)
        super().__init__(
            pretrained,
            backend=backend,  # type: ignore[arg-type]
            dtype=dtype,
            device=device,
            batch_size=size,
            **kwargs,
        )
        if backend == "causal":
            require_next_token(self.config, str(getattr(pretrained, "name_or_path", pretrained)))
        _check_vocabulary(self.tokenizer, self.config, self.model)
        if kwargs.get("peft"):
            require_recorded_weights(self.model, Path(kwargs["peft"]))
        if size.startswith("auto") and torch.device(self.device).type == "cpu":
            rows = max(1, self.max_length * _vocab_size(self.config))
            self.batch_size_per_gpu = max(1, min(int(self.max_batch_size or 64), _CPU_LOGITS // rows))
            _log.info("batch size auto on a CPU: %d", self.batch_size_per_gpu)
        self.begin_task()

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        try:
            super()._get_config(pretrained, **kwargs)
        except Exception as error:
            name = pretrained if Path(pretrained).is_dir() else f"{pretrained}, which is no folder here,"
            raise _unloadable("model", name, error) from None

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        try:
            super()._create_tokenizer(pretrained, tokenizer, *args, **kwargs)
        except Exception as error:
            place = tokenizer or getattr(pretrained, "name_or_path", pretrained)
            raise _unloadable("tokenizer of", str(place), error) from None

    def _create_model(self, pretrained: str, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("peft"):  # the harness resizes the embedding before it loads an adapter
            _check_vocabulary(self.tokenizer, self.config)
        try:
            super()._create_model(pretrained, *args, **kwargs)
        except Exception as error:
            raise _unloadable("model", pretrained, error) from None

    def begin_task(self) -> None:
        """Count prompts anew, and let ``batch_size auto`` be found anew: the next task may have longer requests."""
        self.batch_sizes: dict[Any, int] = {}
        self.asked, self.cut, self.longest, self.room = 0, 0, 0, self.max_length

    def cut_prompts(self) -> dict[str, int]:
        """Over all processes since ``begin_task``: prompts, those cut from the left to fit, tokens of the longest.

        ``room`` is what a prompt may have of the model's ``positions``.
        """
        counts = [(self.asked, self.cut, self.longest, self.room)]
        if self.world_size > 1:
            counts = self.gather_object(counts[0], dst=0) or counts
        asked, cut, longest, room = zip(*counts, strict=True)
        found = {"prompts": sum(asked), "cut": sum(cut), "longest": max(longest), "room": min(room)}
        return {**found, "positions": self.max_length}

    def _count(self, tokens: int, room: int) -> None:
        self.asked += 1
        self.cut += tokens > room
        self.longest = max(self.longest, tokens)
        self.room = min(self.room, room)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"an answer of {len(continuation)} tokens does not fit the model's {self.max_length} positions; "
                    "leave this task out"
                )
            # The last token is predicted and not read.
            self._count(len(context) + len(continuation) - 1, self.max_length)
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def generate_until(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        for request in requests:
            context, options = request.args
            room = self.max_length - normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            self._count(len(self.tok_encode(context)), room)
        return super().generate_until(requests, *args, **kwargs)


def _vocab_size(config: Any) -> int:
    return int(getattr(config.get_text_config(), "vocab_size", 0) or 0)


def _check_vocabulary(tokenizer: Any, config: Any, model: Any = None) -> None:
    rows = _vocab_size(config) if model is None else model.get_input_embeddings().weight.shape[0]
    if rows and (too_many := beyond(tokenizer, rows)):
        raise UserError(
            f"tokenizer {tokenizer.name_or_path} has {too_many} and the model's embedding {rows} rows; "
            "give the tokenizer that the model was trained with"
        )


def _unloadable(what: str, name: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    local = Path(name.partition(",")[0]).exists()
    why = " ".join(str(error).split())[:200].rstrip(". ") if local else reason(error)
    return UserError(f"{what} {name} cannot be loaded ({why}); give a complete folder or a Hub name that exists")
