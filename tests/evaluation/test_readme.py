# SPDX-License-Identifier: Apache-2.0
"""The commands of ibnorm_hf/evaluation/README.md, run as they stand there."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import ibnorm_hf

from .conftest import Place

README = Path(ibnorm_hf.__file__).parent / "evaluation" / "README.md"


def test_every_command_of_the_readme_runs(
    command: Callable, place: Place, models: Callable, trained: Path, tmp_path: Path
) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert len(lines) == 7
    names = {"RUN": trained, "OTHER": models("ibnorm_llama"), "DIR": place.data, "scores.png": tmp_path / "s.png"}
    names |= {"MODEL": models("llama"), "FILE": Path(__file__).parents[2] / "LICENSE"}
    short = ("--limit", "1", "--gen_kwargs", "max_gen_toks=4", "--output_path", tmp_path / "out")
    for program, job, *words in lines:
        if "--text" in words:
            words += ["--output_path", tmp_path / words[0]]
            names["RESULT.json"] = next((tmp_path / "MODEL").glob("perplexity-*.json"), None)
        words = [names.get(word, word) for word in words]
        if job == "eval" and "leaderboard" in words:  # quickly, and without a network
            words += [*short, *(() if "--data" in words else ("--data", place.data))]
        if job == "leaderboard":
            continue  # once there are results, below
        assert program == "ibnorm-hf" and command(job, *words)[0] == 0, words
    (scores,) = (words for _, job, *words in lines if job == "leaderboard")
    places = {**names, "RUN": tmp_path / "out", "OTHER": tmp_path / "out"}
    code, out, _ = command("leaderboard", *(places.get(word, word) for word in scores))
    assert code == 0 and "Side by side" in out and (tmp_path / "s.png").is_file()


def test_the_table_of_data_names_every_source() -> None:
    from ibnorm_hf.evaluation.offline import SOURCES

    text = README.read_text(encoding="utf-8")
    for source in SOURCES.values():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{source.repo}`"))
        for split, columns in source.splits.items():
            assert f"`{split}`" in row
            for column in columns:
                assert f"`{column}`" in row or column.startswith("Incorrect Answer") or column == "answer_index"
