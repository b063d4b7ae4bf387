# SPDX-License-Identifier: Apache-2.0
"""The report's page in a real browser: headless Chromium, where there is one."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

from ibnorm_hf.studies.report import Study, write_report
from ibnorm_hf.studies.verdict import judge_rows

from .fakes import fake_rows

CHROMIUM = shutil.which("chromium")
WORDS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=3000", "--enable-logging=stderr"),
]
PROBE = """<script>
const heads=[...document.querySelectorAll("table")[0].querySelectorAll("th button")];
const column=heads.findIndex(b=>b.textContent.startsWith("difference"));
const read=()=>[...document.querySelectorAll("table")[0].tBodies[0].rows].map(r=>r.cells[column].textContent);
heads[column].click();const up=read();heads[column].click();const down=read();
const wide=document.documentElement.scrollWidth>innerWidth;
document.title=JSON.stringify({up,down,wide,width:innerWidth});</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        why = "no chromium on this machine: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("page")
    truth = {"base": 3.0, "a": 2.9, "b": 3.1, "c": 3.0, "d": 2.95}
    judged = judge_rows(fake_rows(truth, random=1, budgets=(1.0, 3.0)), "base", 0.02)
    write_report(Study("Five arms", judged, fake_rows(truth, random=1, budgets=(1.0, 3.0))), folder)
    return folder


def browse(page, tmp_path, width, *more):
    copy = page / "probe.html"
    copy.write_text((page / "report.html").read_text().replace("</body>", f"{PROBE}</body>"))
    words = [CHROMIUM, *WORDS, f"--user-data-dir={tmp_path}", f"--window-size={width},900", *more, f"file://{copy}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    return done


@pytest.mark.parametrize("width", [500, 1400])
def test_the_page_opens_by_itself_sorts_and_fits(page, tmp_path, width):
    done = browse(page, tmp_path, width, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    told = re.search(r"<title>(.*?)</title>", done.stdout).group(1)
    found = json.loads(html.unescape(told))
    numbers = [float(text) for text in found["up"] if text]
    assert numbers == sorted(numbers) and len(numbers) == 4 and found["up"][-1] == ""
    assert [float(text) for text in found["down"] if text] == numbers[::-1]
    assert not found["wide"], f"the page is wider than {found['width']} pixels"


def test_a_narrow_page_is_legible(page, tmp_path):
    picture = tmp_path / "narrow.png"
    browse(page, tmp_path / "profile", 390, f"--screenshot={picture}")
    assert picture.stat().st_size > 10_000
