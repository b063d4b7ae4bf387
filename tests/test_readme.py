# SPDX-License-Identifier: Apache-2.0
"""README's Python runs, and what its tables and commands name exists. `.ci/run` runs its two shell blocks."""

import re
from pathlib import Path

import ibnorm_hf

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run_in_order(capsys):
    namespace = {}
    snippets = blocks("python")
    assert len(snippets) >= 3
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


def test_table_of_norms_is_complete():
    table = README.split("## Norms")[1].split("All take")[0]
    expanded = table.replace("`-t`", "`ibnorm-t`").replace("`-s`", "`ibnorm-s`").replace("`-sqrt`", "`ibnorm-sqrt`")
    missing = [name for name in ibnorm_hf.list_norms() if f"`{name}`" not in expanded]
    assert not missing


def test_links_and_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for path in re.findall(r"(?:recipes|tests|ibnorm_hf)/[\w/.]+\.(?:py|yaml|md)", README):
        assert (ROOT / path).exists(), path
