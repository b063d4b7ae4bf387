# SPDX-License-Identifier: Apache-2.0
"""The commands of README and of the tiny recipes' headers, run: two steps each, then what is made of a run.

Larger recipes are planned by `test_commands.py`. README's shell blocks of installation and tests are run by `.ci/run`.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ibnorm_hf.cli import _parser, main
from tests.evaluation.conftest import make_results, write_results
from tests.studies.fakes import fake_rows
from tests.studies.test_table import write

from .test_commands import COMMANDS, ROOT

RUN = "runs/llama-tiny-ibnorm-l-seed42"
SHORT = ["--max_steps", "2", "--warmup_steps", "1", "--logging_steps", "1", "--use_cpu", "true"]
TEXT = ["--corpus", "some.txt", "--validation_fraction", "0.2", "--validation_tokens", "512", "--block_size", "64"]
# README's lines that are run elsewhere, and where: all tasks on a tiny run, its scores, a study that takes hours.
ELSEWHERE = {
    "--tasks leaderboard": "tests/evaluation/test_offline.py",
    "ibnorm-hf leaderboard": "tests/evaluation/test_leaderboard.py",
    "compare recipes/studies/llama_tiny_four.yaml": "tests/studies/test_packaged.py",
}


def lines() -> list[str]:
    """README's lines of ``ibnorm-hf``, in their order."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    return [line for line in text.splitlines() if line.startswith("ibnorm-hf ")]


def headers(recipes: list[Path]) -> list[tuple[str, tuple[str, ...]]]:
    """The first command that names each recipe, in its header or on a page."""
    names = [str(path.relative_to(ROOT)) for path in recipes]
    return [next(pair for pair in COMMANDS if pair[1][0] == name and "--dry_run" not in pair[1]) for name in names]


STARTS = headers(sorted((ROOT / "recipes").glob("*/tiny.yaml")))
FINE = headers(sorted((ROOT / "recipes" / "finetune").glob("*.yaml")))


def short(words: tuple[str, ...] | list[str]) -> list[str]:
    """The words of a training command, ended after two steps; text is the licence instead of all docstrings."""
    words = [{"FILE": "some.txt", "PATH/fashion-mnist": "digits"}.get(word, word) for word in words]
    text = [] if any(name in words[0] for name in ("vit/", "resnet/")) else TEXT
    adds = ["--eval_steps", "2", "--save_steps", "2"]
    return [str(ROOT / words[0]), *words[1:], *SHORT, *adds, *text]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A folder to work in, with one run of README's first command and the text that its lines name."""
    folder, before = tmp_path_factory.mktemp("readme"), Path.cwd()
    cache = os.environ.get("IBNORM_CACHE")
    os.environ["IBNORM_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "some.txt").write_text((ROOT / "LICENSE").read_text() * 2)
    assert main(["pretrain", *short(["recipes/llama/tiny.yaml", "--output_dir", RUN])]) == 0
    write_results(folder / "scores.json", make_results())
    write(folder / "results.csv", fake_rows({"rmsnorm": 3.0, "gain": 2.9}, random=1))
    yield folder
    os.chdir(before)
    if cache is None:
        del os.environ["IBNORM_CACHE"]
    else:
        os.environ["IBNORM_CACHE"] = cache


def test_every_line_of_readme_is_here_or_elsewhere():
    found = lines()
    assert len(found) >= 15
    for part, path in ELSEWHERE.items():
        assert any(part in line for line in found) and (ROOT / path).is_file(), part


def test_readme_from_the_run_to_what_is_published(place: Path, capsys):
    """In README's order; where a line would take minutes, its measure is made smaller and nothing else."""
    (place / "MODEL").symlink_to(place / RUN / "model")
    for line in lines():
        if any(part in line for part in ELSEWHERE):
            continue
        words = shlex.split(line, comments=True)[1:]
        words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        if words[0] == "analyze":
            words += ["--samples", "64", "--classes", "8"]
            words += [] if "--densities" in words else ["--estimators", "usable"]
        assert main(words) == 0, line
        out = capsys.readouterr()
        assert out.out.strip() and "Traceback" not in out.err, line
    assert (place / RUN / "model" / "README.md").is_file() and (place / "report" / "report.md").is_file()


@pytest.mark.parametrize("job, words", STARTS, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_a_tiny_recipe_trains_by_its_command(job: str, words, place: Path, tmp_path: Path, capsys):
    assert main([job, *short(words), "--output_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "eval" / "validation.json").is_file(), capsys.readouterr().out


@pytest.mark.parametrize("job, words", FINE, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_a_fine_tuning_runs_by_its_command(job: str, words, place: Path, tmp_path: Path):
    named = [str(place / RUN / "model") if word in ("MODEL", "converted") else word for word in words]
    assert main([job, *short(named), "--output_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "eval" / "validation.json").is_file()


PRINTS = {
    "pretrain": ["llama/tiny", *TEXT, "--dry_run"],
    "finetune": ["finetune/full", "--pretrained", f"{RUN}/model", "--corpus", "some.txt", "--dry_run"],
    "prepare": ["llama/tiny", *TEXT],
    "export": [RUN, "to-nobody"],
    "card": [RUN],
    "push": [RUN, "--repo_id", "me/tiny", "--dry_run"],
    "convert": [f"{RUN}/model", "converted-for-nobody", "--norm_type", "ibnorm-t"],
    "eval": [RUN, "--tasks", "perplexity"],
    "leaderboard": ["scores.json"],
    "compare": ["--table", "results.csv", "--baseline", "rmsnorm", "--margin", "0.02", "--out", "report-for-nobody"],
    "analyze": ["--densities", "--out", "densities-for-nobody"],
    "norms": [],
    "recipes": [],
    "keys": [],
}


def test_nobody_reads_what_any_job_prints():
    (jobs,) = (action.choices for action in _parser()._actions if action.choices)
    assert set(PRINTS) == set(jobs)


UNREAD = [*PRINTS, "--help", "--version"]


@pytest.fixture(scope="module")
def unread(place: Path) -> dict[str, tuple[int, str]]:
    """By job: exit code and standard error, with nobody to read its standard output."""
    jobs = json.dumps([[job, *PRINTS.get(job, [])] for job in UNREAD])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.recipes.closed_pipe"]
    done = subprocess.run(command, input=jobs, capture_output=True, text=True, cwd=place, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(UNREAD, json.loads(done.stdout), strict=True))


def ends_quietly(job: str, code: int, said: str) -> bool:
    wanted = 141 if job in PRINTS else 0  # argparse ends quietly by itself
    return code == wanted and not any(word in said for word in ("Traceback", "BrokenPipe", "Exception"))


@pytest.mark.parametrize("job", UNREAD)
def test_a_closed_pipe_ends_a_job_without_a_traceback(job: str, unread: dict[str, tuple[int, str]]):
    """As `ibnorm-hf JOB ... | head` once head is gone."""
    assert ends_quietly(job, *unread[job]), unread[job]


def test_so_it_does_in_a_process_of_its_own(place: Path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ibnorm_hf.cli", "recipes"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=place)
    os.close(writer)
    assert ends_quietly("recipes", done.returncode, done.stderr), done.stderr
