# SPDX-License-Identifier: Apache-2.0
"""README's Python runs, and what its tables and commands name exists. `.ci/run` runs its two shell blocks."""

import re
from pathlib import Path

import pytest

import ibnorm_hf
from ibnorm_hf.cli import main
from ibnorm_hf.hub.norm_facts import norm_table
from ibnorm_hf.modeling.create import list_norms

from .hosts import HOSTS

BUILT_IN = list_norms("batch")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "recipes").rglob("README.md"))]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_blocks_run_in_order(capsys):
    namespace = {}
    snippets = blocks("python")
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "5 norms are now ibnorm-l" in printed and "normalnorm-noiseless" in printed
    assert namespace["loss"].isfinite()


def test_ci_runs_both_shell_blocks():
    run = (ROOT / ".ci" / "run").read_text()
    for marker in ("main job", "test command"):
        assert README.count(f"<!-- {marker} -->\n```bash\n") == 1
        assert f'readme_block "{marker}"' in run


def test_table_of_norms_is_what_the_registry_says():
    table = README.split("<!-- norms -->\n")[1].split("\n<!-- /norms -->")[0]
    known = [line for line in norm_table("markdown") if "your own" not in line]  # other tests register some
    assert table.splitlines() == known, "write it anew: ibnorm-hf norms --format markdown"
    assert len(known) == 2 + len(BUILT_IN) and all(any(f"| `{name}`" in line for line in known) for name in BUILT_IN)


@pytest.mark.parametrize("page", ["README.md", "NORMS.md"])
def test_python_of_the_recipes_pages_runs(page):
    snippets = blocks("python", (ROOT / "recipes" / page).read_text())
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, f"recipes/{page}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", text):
        if not target.startswith("https://"):
            titles = re.findall(r"^#+ (.*)$", ((page.parent / target) if target else page).read_text(), re.MULTILINE)
            names = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in names, f"{target}#{anchor}"
    for path in re.findall(r"(?:recipes|tests|ibnorm_hf)/[\w/.]+\.(?:py|yaml|md)", text):
        assert (ROOT / path).exists() or Path(path).stem == "X", path  # X stands for any


def test_every_family_is_listed(capsys):
    assert "ibnorm-hf norms --hosts" in README and "ibnorm-hf norms --hosts" in (ROOT / "recipes/NORMS.md").read_text()
    assert main(["norms", "--hosts"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == {f"ibnorm_{family}" for family in ibnorm_hf.FAMILIES}
    for name, host in HOSTS.items():
        line = lines[f"ibnorm_{name}"]
        assert all(cls.__name__ in line for cls in host.heads.values())
        eps = re.search(r"\w+_eps\w*|1e-5", line)[0]
        assert eps == "1e-5" if host.area == "batch" else hasattr(host.vanilla(), eps)
    assert main(["norms", "--hosts", "--format", "markdown"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(lines)
