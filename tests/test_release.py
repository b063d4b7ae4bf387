# SPDX-License-Identifier: Apache-2.0
"""What is released: one version, complete metadata, links that work, and archives that hold what is needed."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import ibnorm_hf

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()
long_description = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["long_description"]


def test_the_version_stands_in_one_place_and_the_papers_agree():
    assert not re.search(r"^version = \"", PROJECT, re.M) and 'attr = "ibnorm_hf.__version__"' in PROJECT
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == ibnorm_hf.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest.group(1) == ibnorm_hf.__version__


def test_metadata_is_complete():
    if sys.version_info < (3, 11):
        pytest.skip("needs tomllib")
    import tomllib

    project = tomllib.loads(PROJECT)["project"]
    assert project["authors"] and project["keywords"] and project["urls"]["Paper"].startswith("https://arxiv.org/")
    assert "Typing :: Typed" in project["classifiers"] and (ROOT / "ibnorm_hf" / "py.typed").is_file()
    assert project["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"]
    first, last = ibnorm_hf._TRANSFORMERS_TESTED
    assert f"transformers>={first},<{ibnorm_hf._TRANSFORMERS_BELOW}" in project["dependencies"]
    from ibnorm_hf.common import private_transformers
    from ibnorm_hf.modeling import private_transformers as of_models

    assert private_transformers.SEEN == of_models.SEEN == f"{first} to {last}"
    (measured,) = re.findall(r"^transformers==([0-9]+\.[0-9]+)\.", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert Version(first) <= Version(measured) <= Version(last)
    assert f"transformers {first} to {last}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("home", [None, "https://code.example/ibnorm_hf"])
def test_no_link_of_the_long_description_is_relative(home):
    readme = (ROOT / "README.md").read_text()
    text = long_description(readme, home, "1.2.3")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all(target.startswith(("https://", "#")) for target in targets)
    if home is None:
        assert "CONTRIBUTING.md says what a change must hold" in text
    else:
        assert f"[CONTRIBUTING.md]({home}/blob/v1.2.3/CONTRIBUTING.md)" in text
        assert f"({home}/raw/v1.2.3/recipes/" in text or "![" not in readme
