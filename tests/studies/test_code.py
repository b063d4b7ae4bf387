# SPDX-License-Identifier: Apache-2.0
"""The digest of a run's code: moved by what computes, and by nothing that is only said."""

import shutil
from pathlib import Path

import pytest

import ibnorm_hf
from ibnorm_hf.studies.code import code_sha256

PACKAGE = Path(ibnorm_hf.__file__).parent


@pytest.fixture(scope="module")
def digest_with(tmp_path_factory):
    """The digest of a copy of the package with one file changed by a function of its text."""
    root = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("code") / "ibnorm_hf")

    def changed(name, change):
        path = root / name
        before = path.read_text()
        text = change(before)
        assert text != before, f"{name} was not changed"
        path.write_text(text)
        try:
            return code_sha256.__wrapped__(root)
        finally:
            path.write_text(before)

    return changed


def replace(old, new):
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("modeling/norms.py", lambda text: "# a remark\n" + text),
        ("modeling/norms.py", replace('"""', '"""Another word. ')),
        ("training/loop/order.py", replace("\n\n\n", "\n\n\n\n# a remark\n")),
        ("modeling/norms.py", replace("\n\n\n", "  # a remark\n\n\n")),
        ("common/study.py", lambda text: text + "\nANOTHER = 1\n"),  # a form of the report and the card
        ("hub/card.py", lambda text: text + "\nANOTHER = 1\n"),
        ("studies/statistics.py", lambda text: text + "\nANOTHER = 1\n"),
    ],
)
def test_what_computes_nothing_in_a_run_leaves_the_digest(digest_with, name, change):
    assert digest_with(name, change) == code_sha256()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("modeling/compression.py", replace("1 / (1 + u.abs())", "1 / (1 - u.abs())")),
        ("modeling/modeling_ibnorm_llama.py", lambda text: text + "\nANOTHER = 1\n"),  # found by its name alone
        ("training/loop/decay.py", replace("if id(parameter) in decayed", "if id(parameter) not in decayed")),
        ("training/text/sources/csv.py", lambda text: text + "\nANOTHER = 1\n"),
        ("common/packed.py", replace("ids < 0", "ids <= 0")),  # imported by training
        ("common/packed.py", replace("PADDING = -1", "PADDING = -2")),
    ],
)
def test_what_computes_moves_the_digest(digest_with, name, change):
    assert digest_with(name, change) != code_sha256()
