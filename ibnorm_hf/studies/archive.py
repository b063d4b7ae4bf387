# SPDX-License-Identifier: Apache-2.0
"""The runs of a study in one small file, `runs.tar.gz`, which travels with its report and can be gone on from.

It holds what a report reads of each run that is done or diverged, and no weights, tokenizers or logs. Paths of the
machine stay behind. The same folders give the same bytes.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..common import strict_yaml
from ..common.errors import UserError, one_line
from ..common.paths import write_atomic
from ..common.run import CONFIG, DATA, ENVIRONMENT, EVAL, METRICS, Run
from ..common.strict_json import dumps
from .runs import DIVERGED, PLACES, run_key, state

ARCHIVE = "runs.tar.gz"
_AS_IT_IS = (METRICS, f"{EVAL}/validation.json", DIVERGED)
_NAMES = (CONFIG, DATA, ENVIRONMENT, *_AS_IT_IS)
_STARTED = ("run_version", "versions", "hardware", "processes", "strategy", "commit", "seed")
_MOST_BYTES = 1 << 29  # of all files together; a run has about 15 KB


def pack(runs: Path, path: Path) -> None:
    """Write the archive of a study's runs.

    Raises:
        UserError: it cannot be written.
    """
    raw = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for folder in sorted(path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()):
            for name, content in _told(folder):
                entry = tarfile.TarInfo(f"runs/{folder.name}/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    try:
        write_atomic(path, raw.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; free some room, or give another --out") from None


def _told(folder: Path) -> list[tuple[str, bytes]]:
    """What of a run goes into the archive; nothing of one that is not finished, or damaged."""
    try:
        if state(folder) not in ("done", "diverged"):
            return []
        run = Run(folder)
        environment: dict[str, Any] = dict(run.environment)
        config = {**run.config, **{key: _at_home(run.config[key]) for key in PLACES if key in run.config}}
        starts = [{key: start[key] for key in _STARTED if key in start} for start in environment.pop("earlier", [])]
        started = {key: environment[key] for key in _STARTED if key in environment}
        texts = {
            CONFIG: strict_yaml.dumps(config),
            DATA: dumps({"fingerprints": run.data.get("fingerprints")}) + "\n",
            ENVIRONMENT: dumps({**started, "earlier": starts}) + "\n",
        }
    except UserError:
        return []
    files = {name: (folder / name).read_bytes() for name in _AS_IT_IS if (folder / name).is_file()}
    return sorted({**{name: text.encode() for name, text in texts.items()}, **files}.items())


def _at_home(place: Any) -> Any:
    """A path without what only its machine has."""
    return os.path.basename(place) if isinstance(place, str) and os.path.isabs(place) else place


def unpack(path: Path, runs: Path, code: str) -> tuple[int, list[str]]:
    """Put those runs of an archive that are of this code beside the study's own; a run that is there already stays.

    Returns:
        How many were taken, and a sentence about the others, if there are any.

    Raises:
        UserError: the archive cannot be read, holds what no study's archive has, or has no run of this code; or there
            is no room for its runs.
    """
    found: dict[str, dict[str, bytes]] = {}
    for run, name, content in _read(path):
        found.setdefault(run, {})[name] = content
    if not found:
        raise UserError(f"{path} holds no finished run; leave --from out")
    runs.mkdir(parents=True, exist_ok=True)
    taken, others = 0, 0
    commits: set[str] = set()
    try:
        with tempfile.TemporaryDirectory(prefix=".from-", dir=runs.parent) as aside:
            for run, files in found.items():
                folder = Path(aside) / run
                for name, content in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
                if run.endswith(f"-{_key(folder, code)}"):
                    taken += _moved(folder, runs / run)
                else:
                    others, commits = others + 1, commits | {str(Run(folder).environment.get("commit"))}
    except OSError as error:
        why = f"runs of {path} cannot be unpacked: {error.strerror or one_line(error)}"
        raise UserError(f"{why}; free some room, or give another --out", exit_code=1) from None
    of = f"commit {', '.join(sorted(commits))}"
    if others == len(found):
        raise UserError(
            f"{path}: all of its {others} runs were made by other code ({of}); a checkout of that goes on from them, "
            "and without --from all runs are made anew"
        )
    more = f"{others} were made by other code ({of}) and are left out; a checkout of that goes on from them"
    return taken, [more] if others else []


def _moved(folder: Path, target: Path) -> bool:
    """Move a run to where it belongs; False where it is there, be it since this moment by another command."""
    if os.path.lexists(target):
        return False
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def _key(folder: Path, code: str) -> str:
    """The id that a run of this recipe and data has under this code."""
    run = Run(folder)
    return run_key(run.config, run.data.get("fingerprints"), code)


def _read(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """(run, file, content) of an archive. Nothing of it is taken but whole files of the names that a run has."""
    try:
        with gzip.open(path) as zipped:
            raw = zipped.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise UserError(f"{path} is not trusted: unpacked it is larger than {_MOST_BYTES >> 20} MiB")
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for entry in tar:
                parts = re.fullmatch(r"runs/([^/\0\\.][^/\0\\]*)/(.+)", entry.name)
                if not (entry.isreg() and not entry.issparse() and parts and parts[2] in _NAMES):
                    odd = one_line(entry.name, 80)
                    raise UserError(f"{path} is not trusted: it holds {odd}, which no archive of a study has")
                handle = tar.extractfile(entry)
                assert handle is not None  # a regular file
                yield parts[1], parts[2], handle.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError, UnicodeError) as error:
        raise UserError(f"archive {path} cannot be read: {one_line(error)}; take a whole copy of it") from None
