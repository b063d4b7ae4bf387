# SPDX-License-Identifier: Apache-2.0
"""The corpus every installation already has: English prose of the docstrings of installed packages.

Source files are parsed, never imported or executed. The text is technical English about Python
libraries, depends on their installed versions, and stays under its authors' licences in the user's
own cache: nothing of it is distributed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from ...common.errors import UserError
from ...common.paths import cache_root, write_json
from . import docstrings

# Dependencies of this package, so that two fresh installations of the same versions hold the same text.
PACKAGES = (
    "stdlib",
    "accelerate",
    "datasets",
    "fsspec",
    "huggingface_hub",
    "matplotlib",
    "mpmath",
    "networkx",
    "numpy",
    "pandas",
    "peft",
    "sympy",
    "torch",
)
# Folders without prose: tests, vendored copies, generated kernels.
SKIPPED = {
    "tests",
    "test",
    "testing",
    "_testing",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "idlelib",
    "lib2to3",
    "_vendor",
    "_inductor",
    "benchmarks",
    "ensurepip",
    "node_modules",
    "rubi",
}


def embedded_corpus() -> Path:
    """Extract the corpus once and return its text file (UTF-8, a blank line between paragraphs).

    A document is the prose of one module; documents are separated by a form feed. Takes about 20 s on
    2 cores the first time, nothing later.

    Raises:
        UserError: no prose was found, e.g. where packages are installed without sources.
    """
    files = list(_source_files())
    key = hashlib.sha256(f"{docstrings.VERSION}\n".encode())
    for _, path, size in files:
        key.update(f"{os.path.basename(path)}:{size}\n".encode())
    folder = cache_root() / "embedded" / key.hexdigest()[:16]
    target = folder / "corpus.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not (folder / "corpus.json").is_file():
            _extract([path for _, path, _ in files], target)
    return target


def _source_files() -> Iterator[tuple[str, str, int]]:
    for package in PACKAGES:
        for folder, names, files in os.walk(_root(package)):
            names[:] = sorted(n for n in names if n not in SKIPPED)
            for name in sorted(files):
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    yield package, path, os.path.getsize(path)


def _root(package: str) -> str:
    """Where a package lies, wherever the interpreter would find it; nothing is imported. An absent one has no files."""
    if package == "stdlib":
        return sysconfig.get_paths()["stdlib"]
    spec = find_spec(package)
    return next(iter(spec.submodule_search_locations or ()), "") if spec else ""


def _extract(files: list[str], target: Path) -> None:
    seen: set[bytes] = set()
    documents = characters = 0
    temporary = target.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        for paragraphs in _parse_all(files):
            fresh = []
            for text in paragraphs:
                mark = hashlib.sha1(text.encode(), usedforsecurity=False).digest()
                if mark not in seen:
                    seen.add(mark)
                    fresh.append(text)
            if fresh:
                out.write("\n\n".join(fresh) + "\n\f\n")
                documents += 1
                characters += sum(map(len, fresh))
    if not documents:
        raise UserError("corpus embedded: the installed packages hold no docstrings; give a corpus file instead")
    os.replace(temporary, target)
    write_json(target.with_suffix(".json"), {"documents": documents, "characters": characters, "packages": PACKAGES})


def _parse_all(files: list[str]) -> Iterator[list[str]]:
    """Paragraphs of each file, in order; one worker a core, as parsing is the whole cost."""
    count = min(8, os.cpu_count() or 1)

    def parse(number: int) -> list[bytes]:
        paths = "\n".join(files[number::count]).encode()
        command = [sys.executable, "-I", "-S", docstrings.__file__]
        return subprocess.run(command, input=paths, stdout=subprocess.PIPE, check=True).stdout.splitlines()

    try:
        with ThreadPoolExecutor(count) as threads:
            lines = list(threads.map(parse, range(count)))
    except subprocess.CalledProcessError:
        raise UserError("corpus embedded: a worker that reads docstrings died; start again") from None
    for index in range(len(files)):
        yield json.loads(lines[index % count][index // count])
