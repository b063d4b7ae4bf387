# SPDX-License-Identifier: Apache-2.0
"""Run harness tasks one leaf at a time, so that an interrupted evaluation goes on from the finished ones."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.tasks import TaskManager

from ..common.errors import UserError, one_line
from ..common.private_lm_eval import environment_described_once, write_samples
from . import ifeval
from .fit import clamp_generation, require_fit
from .harness_model import IBNormLM
from .perplexity import precision_of
from .record import OURS, Record, documents_sha256
from .target import Target

_log = logging.getLogger(__name__)
_SEED_NAMES = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
_SEEDERS: tuple[Callable[[int], Any], ...] = (random.seed, np.random.seed, torch.manual_seed)


def evaluate_tasks(config: EvaluatorConfig, target: Target, names: Sequence[str], output: Path) -> Path | None:
    """Evaluate and return the results file; None on processes other than the first.

    Args:
        config: from ``options.configure``.
        target: the model, for its fingerprint.
        names: tasks or groups of the harness.
        output: folder of the results file and, with ``--log_samples``, of ``samples_<digest>/<task>.jsonl``.

    Raises:
        UserError: an unknown task, data that cannot be loaded, a model that cannot be loaded.
    """
    manager = task_manager(config, names)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise UserError(f"task '{unknown[0]}' is unknown to the harness; `lm-eval ls tasks` lists what it has")
    names = list(dict.fromkeys(match for name in names for match in manager.match_tasks([name])))
    target.say_of_base()
    _seed(config)  # in the order of the harness: seeds, model, tasks
    lm = _load_model(config)
    loaded = _load_tasks(manager, names)
    record = Record(output, _settings(config, target, lm), target.peft or target.pretrained)
    record.content[OURS]["precision"] = _precision(lm)
    tasks = loaded["tasks"]
    require_fit(lm, tasks, config)
    for number, (name, task) in enumerate(tasks.items(), 1):
        documents = documents_sha256(task)
        # A part of the questions is enough only as long as the rest cannot be scored.
        again = record.excluded(name) and ifeval.fetch_sentence_model()
        if record.finished(name, documents) and not again:
            _say(f"[{number}/{len(tasks)}] {name}: finished earlier")
            continue
        _say(f"[{number}/{len(tasks)}] {name}")
        started = time.monotonic()
        part, about = _evaluate_leaf(lm, name, task, manager, config, record)
        if part is None:
            continue
        if config.log_samples:
            write_samples(record.samples / f"{name}.jsonl", part["samples"][name])
        sizes = [int(v) for v in getattr(lm, "batch_sizes", {}).values()] or [lm.batch_size]
        record.add(name, part, documents, batch_sizes=sizes, seconds=round(time.monotonic() - started, 2), **about)
    if lm.rank != 0:
        return None
    record.close(loaded.get("groups", {}))
    return record.path


def task_manager(config: EvaluatorConfig, names: Sequence[str]) -> TaskManager:
    """Index of tasks: only the leaderboard's where nothing else is asked, which takes no 12 seconds."""
    if all(name.startswith("leaderboard") for name in names) and not config.include_path:
        folder = Path(str(lm_eval.__file__)).parent / "tasks" / "leaderboard"
        return TaskManager(include_path=str(folder), include_defaults=False, metadata=config.metadata)
    return TaskManager(include_path=config.include_path, metadata=config.metadata)


def _seeds(config: EvaluatorConfig) -> list[Any]:
    """For python, numpy, torch and the choice of examples; None leaves one as it is."""
    return list(config.seed) if isinstance(config.seed, list) else [config.seed] * 4


def _seed(config: EvaluatorConfig) -> None:
    for seed, function in zip(_seeds(config), _SEEDERS, strict=False):
        if seed is not None:
            function(seed)


def _load_model(config: EvaluatorConfig) -> IBNormLM:
    extra = {"batch_size": config.batch_size, "max_batch_size": config.max_batch_size, "device": config.device}
    return IBNormLM(**{**{k: v for k, v in extra.items() if v is not None}, **config.model_args})


def _load_tasks(manager: TaskManager, names: Sequence[str]) -> Any:
    try:
        return manager.load(list(names))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the data of {', '.join(names)} cannot be loaded ({reason}); `ibnorm-hf eval --check --data DIR` "
            "tells what a folder of local data lacks"
        ) from None


def _settings(config: EvaluatorConfig, target: Target, lm: IBNormLM) -> dict[str, Any]:
    """Everything but the tasks that decides a number."""
    keys = ("num_fewshot", "limit", "samples", "gen_kwargs", "seed", "system_instruction", "apply_chat_template")
    chosen = {key: getattr(config, key) for key in (*keys, "fewshot_as_multiturn", "predict_only")}
    names = ("lm_eval", "torch", "transformers", "tokenizers", "datasets", "ibnorm_hf")
    return {
        **chosen,
        "model_sha256": target.fingerprint(),
        "model_args": {k: str(v) for k, v in config.model_args.items()},
        "batch_size": str(lm.batch_size),
        "device": str(lm.device).split(":")[0],
        "dtype": str(lm.model.dtype),
        **({"autocast": mixed} if (mixed := _precision(lm)["autocast"]) else {}),
        "versions": {name: metadata.version(name) for name in names},
    }


def _precision(lm: IBNormLM) -> dict[str, str | None]:
    return precision_of(lm.model, lm.mixed_precision_dtype)  # type: ignore[arg-type]


def _evaluate_leaf(
    lm: IBNormLM, name: str, task: Any, manager: TaskManager, config: EvaluatorConfig, record: Record
) -> tuple[Any, dict[str, Any]]:
    limit, samples, excluded = config.limit, config.samples, None
    gen_kwargs, clamped = clamp_generation(lm, task, config.gen_kwargs)
    if clamped:
        _say(f"{name}: {clamped['given']} new tokens instead of {clamped['asked']}, to fit {lm.max_length} positions")
    if ifeval.TASK_WORD in name and not ifeval.fetch_sentence_model():
        samples, limit, excluded = _without_sentences(name, task, config)
    lm.begin_task()
    # The seeds are set at every call: a leaf's numbers do not depend on which leaves came before it in this process.
    seeds = dict(zip(_SEED_NAMES, _seeds(config), strict=True))
    with environment_described_once(), _told_in_a_sentence(name):
        part = lm_eval.simple_evaluate(
            lm,
            model_args=config.model_args,
            tasks=[task],
            task_manager=manager,
            num_fewshot=config.num_fewshot,
            batch_size=config.batch_size,
            device=str(lm.device),
            # The harness's cache knows requests and not models: its file must.
            use_cache=f"{config.use_cache}_{record.digest}" if config.use_cache else None,
            **config.cache_requests,
            limit=limit,
            samples=samples,
            write_out=config.write_out,
            log_samples=True,  # for the task's hash; the samples are written on request only
            system_instruction=config.system_instruction,
            apply_chat_template=config.apply_chat_template,
            fewshot_as_multiturn=bool(config.fewshot_as_multiturn),
            gen_kwargs=gen_kwargs or None,
            predict_only=config.predict_only,
            confirm_run_unsafe_code=bool(config.confirm_run_unsafe_code),
            **seeds,
        )
    cut = lm.cut_prompts()
    if part is not None:
        # As they were asked: a leaf's own limit and room are in `excluded` and `clamped`.
        part["config"].update(limit=config.limit, gen_kwargs=config.gen_kwargs or None)
    if cut["cut"]:
        _say(f"{name}: {cut['cut']} of {cut['prompts']} prompts are cut (longest {cut['longest']} tokens)")
    return part, {"excluded": excluded, "clamped": clamped, "prompts": cut}


@contextmanager
def _told_in_a_sentence(name: str) -> Iterator[None]:
    """What the harness or the model raise on the way; the finished tasks are kept."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}", exit_code=error.exit_code) from None
    except Exception as error:
        _log.debug("traceback of %s", name, exc_info=True)
        raise UserError(
            f"{name}: the harness stopped ({type(error).__name__}: {one_line(error, 200)}); finished tasks are kept, "
            "LMEVAL_LOG_LEVEL=DEBUG shows more",
            exit_code=1,
        ) from error


def _without_sentences(name: str, task: Any, config: EvaluatorConfig) -> tuple[Any, None, dict[str, Any]]:
    wanted = list(range(len(task.eval_docs)))
    if config.samples and name in config.samples:
        wanted = list(config.samples[name])
    elif config.limit is not None:
        count = evaluator.get_sample_size(task, config.limit)
        wanted = wanted[:count]
    kept = sorted(set(wanted) & set(ifeval.scorable(task.eval_docs)))
    if not kept:
        raise UserError(f"{name}: no chosen question can be scored without the sentence model; {ifeval.ADVICE}")
    if len(kept) == len(wanted):
        return config.samples, config.limit, None  # type: ignore[return-value]
    reason = f"NLTK's punkt_tab is not here; {len(wanted) - len(kept)} of {len(wanted)} questions are left out"
    _say(f"{name}: {reason}. {ifeval.ADVICE}")
    return {name: kept}, None, {"reason": reason, "questions": len(wanted), "scored": len(kept)}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
