# SPDX-License-Identifier: Apache-2.0
"""The tests of the installed transformers, taken from its source distribution (wheels do not carry them)."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "peer"

# SHA-256 of the source distributions this suite was run with: the oldest supported, that of constraints, the newest.
PINNED = {
    "5.17.0": "a153be279169b55b92d8000bf4af294aed684503d091cca7804da2dd8a9de000",
    "5.23.0": "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71",
    "5.24.0": "906cb8c3cb2123575e263962586a4d21a979ce97feeb95fe6aaf66fe6ae88bf3",
}

# Files that transformers' tests import and its source distribution leaves out: where they belong, our stand-in.
STUBS = {
    "tests/__init__.py": "empty.py",
    "tests/exporters/__init__.py": "empty.py",
    "tests/exporters/test_export.py": "exporters.py",
    "tests/generation/__init__.py": "empty.py",
    "tests/generation/test_utils.py": "generation.py",
    "tests/utils/__init__.py": "empty.py",
    "tests/utils/test_configuration_utils.py": "configuration_utils.py",
}


class PeerUnavailable(Exception):
    """The source distribution cannot be had here (no network, no pip)."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(archive: Path, version: str) -> None:
    """Raise, and forget the file, if it is not the one that was pinned."""
    found = sha256(archive)
    if found != PINNED.get(version, found):
        archive.unlink()
        raise ValueError(f"{archive.name}: SHA-256 is {found}, pinned is {PINNED[version]}; deleted, not run")


def note(archive: Path, version: str) -> str:
    """What to tell the reader about a version that nobody has pinned."""
    return "" if version in PINNED else f" (not pinned in {HERE.name}/source.py, SHA-256 {sha256(archive)})"


def fetch(version: str, cache: Path = CACHE) -> Path:
    """The checked archive, downloaded with pip unless an earlier run left it in the cache."""
    archive = cache / f"transformers-{version}.tar.gz"
    if not archive.exists():
        download(version, cache)
    if not archive.exists():
        raise PeerUnavailable(f"pip brought no {archive.name}")
    check(archive, version)
    return archive


def download(version: str, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    requirement = f"transformers=={version}"
    if version in PINNED:
        # pip reads a source distribution's metadata by running its setup.py: let it check the hash before that.
        requirement += f" --hash=sha256:{PINNED[version]}"
    wanted = cache / f"requirements-{version}.txt"
    wanted.write_text(requirement + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries", "2"]
    command += ["--no-deps", "--no-binary", "transformers"]
    if importlib.util.find_spec("setuptools"):
        command.append("--no-build-isolation")  # nothing is built: this spares pip a second download
    command += ["-d", str(cache), "-r", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailable("pip did not answer within 600 s") from error
    if done.returncode:
        # A wrong hash is no network trouble: it must never read as "not available here".
        if "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr:
            raise ValueError(done.stderr.strip())
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise PeerUnavailable(f"pip could not bring transformers {version}: {reason.strip()}")


def unpack(archive: Path, version: str, target: Path) -> Path:
    """Lay the archive's tests, our stand-ins for what it lacks, and our testers into `target`."""
    top = f"transformers-{version}/"
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and m.name.startswith(top + "tests/")]
        for member in members:
            member.name = member.name.removeprefix(top)
        tar.extractall(target, members=members, filter="data")
    for name, stub in STUBS.items():
        path = target / name
        if not path.exists():  # what the source distribution does carry is used as it is
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / "stubs" / stub, path)
    shutil.copytree(HERE / "suite", target / "tests" / "peer", ignore=shutil.ignore_patterns("__pycache__"))
    return target
