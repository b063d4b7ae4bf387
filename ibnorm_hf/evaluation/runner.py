# SPDX-License-Identifier: Apache-2.0
"""Run harness tasks one leaf at a time, so that an interrupted evaluation goes on from the finished ones.

One results file in the harness's own layout, rewritten after every leaf: what it lists is finished. Its name carries a
digest of everything that decides a number (model files, dtype, batch size, shots, limit, seeds, versions), so other
settings go to another file and are never mixed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import random
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string

from ..common.errors import UserError
from . import ifeval
from .harness_model import IBNormLM
from .target import Target, read_json, write_json

_log = logging.getLogger(__name__)
_SEEDERS: tuple[Callable[[int], Any], ...] = (random.seed, np.random.seed, torch.manual_seed)
OURS = "ibnorm"  # our block in a results file
_PER_TASK = ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "task_hashes")


def configure(words: Sequence[str], target: Target, tasks: str, output: Path) -> EvaluatorConfig:
    """The harness's own configuration, from its own parser: every argument of ``lm-eval run`` means what it does there.

    Raises:
        UserError: an argument the harness refuses; unknown words end in its usage message and exit code 2.
    """
    from lm_eval._cli.harness import HarnessCLI

    model_args = ",".join(f"{key}={value}" for key, value in target.model_args.items())
    fixed = ["run", "--model", "ibnorm", "--tasks", tasks, "--output_path", str(output)]
    if not any(word.split("=")[0] in ("--batch_size", "-b") for word in words):
        fixed += ["--batch_size", "auto"]
    namespace: Namespace = HarnessCLI()._parser.parse_args([*fixed, *words])
    given = namespace.model_args or {}
    namespace.model_args = {**_arguments(model_args), **given}
    for key in ("wandb_args", "trackio_args", "hf_hub_log_args", "check_integrity"):
        if getattr(namespace, key, None):
            raise UserError(f"eval: --{key} belongs to the stock command; use `python -m ibnorm_hf.evaluation run`")
    try:
        return EvaluatorConfig.from_cli(namespace)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"eval: {' '.join(str(error).split())}") from None


def _arguments(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(","))


def task_manager(config: EvaluatorConfig, names: Sequence[str]) -> TaskManager:
    """Index of tasks: only the leaderboard's where nothing else is asked, which takes no 12 seconds."""
    if all(name.startswith("leaderboard") for name in names) and not config.include_path:
        folder = Path(str(sys.modules["lm_eval"].__file__)).parent / "tasks" / "leaderboard"
        return TaskManager(include_path=str(folder), include_defaults=False, metadata=config.metadata)
    return TaskManager(include_path=config.include_path, metadata=config.metadata)


def evaluate_tasks(config: EvaluatorConfig, target: Target, names: Sequence[str], output: Path) -> Path | None:
    """Evaluate and return the results file; None on processes other than the first.

    Args:
        config: from ``configure``.
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
    _seed(config.seed)  # in the order of the harness: seeds, model, tasks
    lm = _load_model(config)
    loaded = _load_tasks(manager, names, config)
    settings = _settings(config, target, lm)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
    path = output / f"results_{digest}.json"
    content = read_json(path) if path.is_file() else _empty(config, target, lm, settings)
    if config.use_cache:
        from lm_eval.api.model import CachingLM

        # The harness's cache knows requests and not models: its file must.
        lm = CachingLM(lm, f"{config.use_cache}_{digest}_rank{lm.rank}.db")  # type: ignore[assignment]
    tasks = loaded["tasks"]
    for number, (name, task) in enumerate(tasks.items(), 1):
        documents = _documents_sha256(task)
        if _finished(content, name, documents):
            _say(f"[{number}/{len(tasks)}] {name}: finished earlier")
            continue
        _say(f"[{number}/{len(tasks)}] {name}")
        _seed(config.seed)  # a leaf's numbers must not depend on which leaves came before it in this process
        started = time.monotonic()
        part, excluded = _evaluate_leaf(lm, name, task, config)
        if part is None:
            continue
        _merge(content, name, part, documents, excluded, time.monotonic() - started)
        if config.log_samples:
            _write_samples(output / f"samples_{digest}" / f"{name}.jsonl", part["samples"][name])
        write_json(path, content)
    if lm.rank != 0:
        return None
    content["groups"] = _aggregate(content, loaded.get("groups", {}))
    write_json(path, content)
    return path


def _seed(seeds: Sequence[int | None] | None) -> None:
    for seed, function in zip(seeds or [], _SEEDERS, strict=False):
        if seed is not None:
            function(seed)


def _load_model(config: EvaluatorConfig) -> IBNormLM:
    extra = {"batch_size": config.batch_size, "max_batch_size": config.max_batch_size, "device": config.device}
    return IBNormLM(**{**{k: v for k, v in extra.items() if v is not None}, **config.model_args})


def _load_tasks(manager: TaskManager, names: Sequence[str], config: EvaluatorConfig) -> Any:
    try:
        loaded = manager.load(list(names))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the data of {', '.join(names)} cannot be loaded ({reason}); `ibnorm-hf eval --check --data DIR` "
            "tells what a folder of local data lacks"
        ) from None
    for task in loaded["tasks"].values():
        if task.get_config("output_type") == "generate_until" and config.gen_kwargs:
            task.set_config(key="generation_kwargs", value=config.gen_kwargs, update=True)
        default = task.get_config("num_fewshot")
        if config.num_fewshot is not None and default != 0:
            task.set_config(key="num_fewshot", value=config.num_fewshot)
        elif default is None:
            task.set_config(key="num_fewshot", value=0)
        if config.predict_only:
            task.override_metric(metric_name="bypass")
        task.set_fewshot_seed(seed=config.seed[3] if config.seed else None)
    return loaded


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
        "versions": {name: metadata.version(name) for name in names},
    }


def _empty(config: EvaluatorConfig, target: Target, lm: IBNormLM, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: {} for key in _PER_TASK},
        "config": {
            "model": "ibnorm",
            "model_args": config.model_args,
            **lm.get_model_info(),
            "batch_size": config.batch_size,
            "device": str(lm.device),
            "limit": config.limit,
            "gen_kwargs": config.gen_kwargs or None,
            "random_seed": config.seed[0] if config.seed else None,
        },
        "model_name": target.peft or target.pretrained,
        "lm_eval_version": metadata.version("lm_eval"),
        "transformers_version": metadata.version("transformers"),
        "date": time.time(),
        OURS: {"settings": settings, "documents": {}, "excluded": {}, "batch_sizes": {}, "seconds": {}},
    }


def _finished(content: dict[str, Any], name: str, documents: str) -> bool:
    ours = content[OURS]
    if name not in content["results"] or ours["documents"].get(name) != documents:
        return False
    # A part of the questions is enough only as long as the rest cannot be scored.
    return name not in ours["excluded"] or not ifeval.fetch_sentence_model()


def _documents_sha256(task: Any) -> str:
    """Digest of a task's definition and questions: neither other data nor another version counts as finished."""
    definition = json.dumps(task.dump_config(), sort_keys=True, default=str)
    definition = re.sub(r" at 0x[0-9a-f]+>", ">", definition)  # addresses of functions differ from process to process
    checksum = hashlib.sha256(definition.encode())
    for document in task.eval_docs:
        checksum.update(json.dumps(document, sort_keys=True, default=handle_non_serializable).encode())
    return checksum.hexdigest()


def _evaluate_leaf(lm: IBNormLM, name: str, task: Any, config: EvaluatorConfig) -> tuple[Any, dict[str, Any] | None]:
    limit, samples, excluded = config.limit, config.samples, None
    if ifeval.TASK_WORD in name and not ifeval.fetch_sentence_model():
        samples, limit, excluded = _without_sentences(name, task, config)
    lm.forget_batch_sizes()
    part = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": {name: task}},
        limit=limit,
        samples=samples,
        log_samples=True,  # for task_hashes; the samples are written on request only
        write_out=config.write_out,
        cache_requests=bool(config.cache_requests.get("cache_requests", False)) if config.cache_requests else False,
        system_instruction=config.system_instruction,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=bool(config.fewshot_as_multiturn),
        confirm_run_unsafe_code=bool(config.confirm_run_unsafe_code),
    )
    if part is not None:
        hashes = [s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in part["samples"][name]]
        part["task_hashes"] = {name: hash_string("".join(hashes))}
        part["batch_sizes"] = [int(v) for v in getattr(lm, "batch_sizes", {}).values()] or [lm.batch_size]
    return part, excluded


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


def _merge(
    content: dict[str, Any], name: str, part: Any, documents: str, excluded: dict[str, Any] | None, seconds: float
) -> None:
    for key in _PER_TASK:
        content[key][name] = copy.deepcopy(part[key][name])
    ours = content[OURS]
    ours["documents"][name] = documents
    ours["batch_sizes"][name] = part["batch_sizes"]
    ours["seconds"][name] = round(seconds, 2)
    ours["excluded"].pop(name, None)
    if excluded:
        ours["excluded"][name] = excluded


def _aggregate(content: dict[str, Any], groups: dict[str, Any]) -> dict[str, Any]:
    """The harness's own group means, of those groups whose leaves are all there."""
    out = {}
    for name, group in groups.items():
        leaves = [task.task_name for task in group.get_all_tasks()]
        if group.has_aggregation and all(leaf in content["results"] for leaf in leaves):
            out[name] = dict(group.aggregate(content["results"]))
    return out


def _write_samples(path: Path, samples: list[dict[str, Any]]) -> None:
    """A line a question, in the harness's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tracker = EvaluationTracker(output_path=str(path.parent / "samples.json"))
    tracker.date_id = "new"
    written = path.parent / f"samples_{path.stem}_new.jsonl"
    written.unlink(missing_ok=True)
    tracker.save_results_samples(task_name=path.stem, samples=samples)  # type: ignore[arg-type]
    written.replace(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
