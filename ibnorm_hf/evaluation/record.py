# SPDX-License-Identifier: Apache-2.0
"""The results file while it is being written: the harness's own layout, and our block ``ibnorm`` beside it.

One file, rewritten after every leaf task: what it lists is finished. Its name carries a digest of everything that
decides a number (model files, dtype, batch size, shots, limit, seeds, versions), so other settings go to another file
and are never mixed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, hash_string

from ..common.paths import write_json
from ..common.strict_json import plain, read_object

OURS = "ibnorm"  # our block in a results file
_PER_TASK = ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "task_hashes")
# What the harness writes once a call, whatever the task.
_ONCE = ("git_hash", "date", "pretty_env_info", "transformers_version", "lm_eval_version", "upper_git_hash")
_TOKENIZER = ("tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length")


class Record:
    """What is known so far under one set of settings.

    Args:
        output: folder of the file.
        settings: everything but the tasks that decides a number.
        model_name: what was evaluated, for readers.
    """

    def __init__(self, output: Path, settings: dict[str, Any], model_name: str) -> None:
        text = json.dumps(settings, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = output / f"results_{self.digest}.json"
        self.samples = output / f"samples_{self.digest}"
        self.content: dict[str, Any] = read_object(self.path) if self.path.is_file() else {}
        for key in _PER_TASK:
            self.content.setdefault(key, {})
        self.content.setdefault("model_name", model_name)
        ours = self.content.setdefault(OURS, {"settings": settings})
        for key in ("documents", "excluded", "batch_sizes", "seconds"):
            ours.setdefault(key, {})

    def finished(self, name: str, documents: str) -> bool:
        """Whether the whole leaf, with these questions, is there."""
        return name in self.content["results"] and self.content[OURS]["documents"].get(name) == documents

    def excluded(self, name: str) -> bool:
        """Whether questions of the leaf were left out."""
        return name in self.content[OURS]["excluded"]

    def add(self, name: str, part: Any, documents: str, **about: Any) -> None:
        """Take over what ``simple_evaluate`` returned for one leaf, and write the file.

        Args:
            name: the leaf.
            part: with ``samples``, whose digests make the task's hash, as the harness makes it when it saves.
            documents: from ``documents_sha256``.
            about: entries of our own, by name; None where there is nothing to say.
        """
        hashes = [s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in part["samples"][name]]
        part["task_hashes"] = {name: hash_string("".join(hashes))}
        for key in _PER_TASK:
            self.content[key][name] = copy.deepcopy(part[key][name])
        self.content.update({key: part[key] for key in (*_ONCE, *_TOKENIZER) if key in part})
        self.content["config"] = {**part["config"], "model": "ibnorm"}
        ours = self.content[OURS]
        ours["documents"][name] = documents
        for key, value in about.items():
            table = ours.setdefault(key, {})
            table.pop(name, None)
            if value is not None:
                table[name] = value
        write_json(self.path, plain(self.content))

    def close(self, groups: dict[str, Any]) -> None:
        """Add the harness's own group means, of those groups whose leaves are all there, and write the file."""
        means = {}
        for name, group in groups.items():
            leaves = [task.task_name for task in group.get_all_tasks()]
            if group.has_aggregation and all(leaf in self.content["results"] for leaf in leaves):
                means[name] = dict(group.aggregate(self.content["results"]))
        self.content["groups"] = means
        write_json(self.path, plain(self.content))


def documents_sha256(task: Any) -> str:
    """Digest of a task's definition and questions: neither other data nor another version counts as finished."""
    definition = json.dumps(task.dump_config(), sort_keys=True, default=str)
    definition = re.sub(r" at 0x[0-9a-f]+>", ">", definition)  # addresses of functions differ from process to process
    checksum = hashlib.sha256(definition.encode())
    for document in task.eval_docs:
        checksum.update(json.dumps(document, sort_keys=True, default=handle_non_serializable).encode())
    return checksum.hexdigest()
