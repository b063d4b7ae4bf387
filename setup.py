# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say of the packaging.

The recipes, which stand beside the package, are a folder of data in it; and README's links have to work on a page
beside which no file lies.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


def long_description(readme: str, home: str | None, version: str) -> str:
    """README with absolute links, to the files of this version at ``home``; where there is none, their words alone."""

    def absolute(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if home is None:
            return words
        return f"{picture}[{words}]({home}/{'raw' if picture else 'blob'}/v{version}/{path})"

    return _LINK.sub(absolute, readme)


def _said(file: str, pattern: str) -> str | None:
    found = re.search(pattern, (HERE / file).read_text(encoding="utf-8"), re.MULTILINE)
    return found and found.group(1)


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["ibnorm_hf*"]), "ibnorm_hf.recipes"],
        package_dir={"ibnorm_hf.recipes": "recipes"},
        long_description=long_description(
            (HERE / "README.md").read_text(encoding="utf-8"),
            home=_said("pyproject.toml", r'^Repository = "(.+)"'),
            version=_said("ibnorm_hf/__init__.py", r'^__version__ = "(.+)"') or "0",
        ),
        long_description_content_type="text/markdown",
    )
