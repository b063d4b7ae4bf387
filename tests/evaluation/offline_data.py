# SPDX-License-Identifier: Apache-2.0
"""Small local stand-ins for the leaderboard's data sets, in the true schemas, and for IFEval's sentence model.

Layout and column names are those of the originals; the questions are made up, except BBH's, which are the harness's own
few-shot examples.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROWS = 3
SUBJECTS = ("copper", "granite", "willow", "amber", "sparrow", "harbour", "lantern", "meadow", "violin", "pepper")


def make_data(folder: Path) -> Path:
    """Write every data set of the `leaderboard` group under ``folder``, each in a folder named by its Hub id."""
    _mmlu_pro(folder / "TIGER-Lab" / "MMLU-Pro")
    _bbh(folder / "SaylorTwift" / "bbh")
    _gpqa(folder / "Idavidrein" / "gpqa")
    _math(folder / "DigitalLearningGmbH" / "MATH-lighteval")
    _ifeval(folder / "wis-k" / "instruction-following-eval")
    _musr(folder / "TAUR-Lab" / "MuSR")
    return folder


def write_dataset(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """``{config: {split: rows}}`` as JSON lines, and the README.md that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            name = f"{config}-{split}.jsonl"
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files.append({"split": split, "path": name})
        entries.append({"config_name": config, "data_files": files})
    header = yaml.safe_dump({"configs": entries}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")


def _mmlu_pro(folder: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        answer = number % 10
        return {
            "question_id": number,
            "question": f"Which word is number {answer + 1} of the list in edition {number}?",
            "options": list(SUBJECTS),
            "answer": "ABCDEFGHIJ"[answer],
            "answer_index": answer,
            "cot_content": "",
            "category": "other",
            "src": "made-up",
        }

    write_dataset(
        folder, {"default": {"test": [row(i) for i in range(ROWS)], "validation": [row(50 + i) for i in range(5)]}}
    )


def _bbh(folder: Path) -> None:
    from lm_eval import tasks

    # The few-shot examples of the harness's own task files: real questions, with answers among the choices.
    source = Path(str(tasks.__file__)).parent / "leaderboard" / "bbh_mc"
    configs = {}
    for path in sorted(source.glob("[a-z]*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        configs[content["dataset_name"]] = {"test": content["fewshot_config"]["samples"][:ROWS]}
    assert len(configs) == 24
    write_dataset(folder, configs)


def _gpqa(folder: Path) -> None:
    rows = [
        {
            "Question": f"A body of {SUBJECTS[i]} is heated by {i + 2} K. What does its owner observe?",
            "Correct Answer": f"It expands by {i + 1} units.",
            **{f"Incorrect Answer {k}": f"It shrinks by {i + k} units." for k in (1, 2, 3)},
        }
        for i in range(ROWS)
    ]
    write_dataset(folder, {f"gpqa_{name}": {"train": rows} for name in ("main", "diamond", "extended")})


def _math(folder: Path) -> None:
    names = "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus"

    def row(number: int, level: int) -> dict[str, Any]:
        return {
            "problem": f"What is ${number} + {number}$?",
            "level": f"Level {level}",
            "type": "Algebra",
            "solution": f"Adding gives $\\boxed{{{2 * number}}}$.",
        }

    # Easier rows are there to be filtered out by the task.
    test = [row(0, 1), *(row(i, 5) for i in range(2, 2 + ROWS))]
    write_dataset(folder, {name: {"train": [row(9, 5)], "test": test} for name in names.split()})


def _ifeval(folder: Path) -> None:
    def row(key: int, prompt: str, **instructions: dict[str, Any]) -> dict[str, Any]:
        # The published file gives every instruction the same keys, None where they do not apply.
        keys = ("num_words", "relation", "num_sentences", "capital_frequency", "capital_relation")
        return {
            "key": key,
            "prompt": prompt,
            "instruction_id_list": [name.replace("__", ":") for name in instructions],
            "kwargs": [{**dict.fromkeys(keys), **given} for given in instructions.values()],
        }

    rows = [
        row(
            1,
            "Write about copper in at least 3 words and without any comma.",
            length_constraints__number_words={"num_words": 3, "relation": "at least"},
            punctuation__no_comma={},
        ),
        row(2, "Describe granite in less than 2 sentences.", length_constraints__number_sentences=_sentences()),
        row(3, "Describe a willow without any comma.", punctuation__no_comma={}),
    ]
    write_dataset(folder, {"default": {"train": rows}})


def _sentences() -> dict[str, Any]:
    return {"num_sentences": 2, "relation": "less than"}


def _musr(folder: Path) -> None:
    def rows(choices: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "narrative": f"{choices[0]} met {choices[1]} near the {SUBJECTS[i]}. Both left in a hurry.",
                "question": "Who left first?",
                "choices": repr(choices),
                "answer_index": i % len(choices),
                "answer_choice": choices[i % len(choices)],
            }
            for i in range(ROWS)
        ]

    names = ["Ada", "Ben", "Cleo", "Dan", "Eve"]
    counts = {"murder_mysteries": 2, "object_placements": 5, "team_allocation": 3}
    write_dataset(folder, {"default": {split: rows(names[:k]) for split, k in counts.items()}})


def make_sentence_model(folder: Path, text: str) -> None:
    """Train NLTK's sentence splitter on ``text`` and save it where ``NLTK_DATA=folder`` finds it as punkt_tab.

    NLTK writes to its own data folders only, and reads their list when it is imported.
    """
    import nltk
    from nltk.tokenize import punkt

    trainer = punkt.PunktTrainer()
    trainer.train(text, finalize=True)
    target = folder / "tokenizers" / "punkt_tab" / "english"
    target.mkdir(parents=True)
    nltk.data.path.insert(0, str(folder))
    punkt.save_punkt_params(trainer.get_params(), str(target))
