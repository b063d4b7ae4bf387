# SPDX-License-Identifier: Apache-2.0
"""recipes/RUN_FOLDER.md names every file and key of the form that the reader knows, and its version."""

import re
from pathlib import Path

import pytest

from ibnorm_hf.common import run

PAGE = (Path(__file__).parents[2] / "recipes" / "RUN_FOLDER.md").read_text()
FORMS = {
    run.ENVIRONMENT: (run.Environment,),
    run.DATA: (run.Data, run.Corpus, run.Part, run.Shard),
    run.METRICS: (run.Metric,),
    f"{run.EVAL}/validation.json": (run.Validation,),
}


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]


def test_the_page_is_of_this_form():
    assert PAGE.startswith(f"# The run folder, form {run.VERSION}\n")
    for name in (run.CONFIG, run.ENVIRONMENT, run.DATA, run.METRICS, run.LOSS_CURVE, f"{run.MODEL}/", *FORMS):
        assert f"| `{name}` |" in PAGE, name


@pytest.mark.parametrize("file", FORMS)
def test_every_key_is_said(file):
    named = set(re.findall(r"`(\w+)`", section(file)))
    for form in FORMS[file]:
        for key in form.__annotations__:
            assert key in named or (key.startswith("eval_") and "`eval_`" in section(file)), f"{file}: {key}"
