# SPDX-License-Identifier: Apache-2.0
"""Libraries that the machine's own compiler built, kept where nobody but this user can put one.

A library is code that runs in every later process, so it is loaded only from a folder of the user's own: mode 0700,
``$XDG_CACHE_HOME/ibnorm_hf/kernels`` (default ``~/.cache``), whatever other caches are shared on a cluster. Its name
is a hash of all that decides it, and its last bytes are a hash of the rest, so that half a file is never mapped.
Where no such folder can be had, a library is built in a temporary folder for this process alone.
"""

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

_DIGEST = hashlib.sha256().digest_size
_STALE_AFTER = 3600.0  # seconds; a half-written file this old belongs to a process that was killed


def load_library(name: str, source: str, flags: Sequence[str]) -> tuple[ctypes.CDLL, str | None]:
    """The library of a C++ source, built at first use: (library, None or why it was not kept for later processes).

    Raises:
        OSError, subprocess.SubprocessError: no compiler, or it failed, or the library does not load.
    """
    compiler = _compiler()
    key = hashlib.sha256(repr((source, tuple(flags), torch.__version__, _target(compiler))).encode()).hexdigest()[:32]
    content = None
    try:
        library = _private_folder() / f"{name}-{key}.so"
        if not _is_sound(library):
            content = _built(compiler, source, flags)
            _keep(library, content)
        return _loaded(library), None
    except _NotKept as error:
        reason = str(error)
    with tempfile.TemporaryDirectory(prefix="ibnorm_hf-") as temporary:  # mode 0700; a mapped library outlives its name
        library = Path(temporary) / f"{name}.so"
        library.write_bytes(content or _built(compiler, source, flags))
        return ctypes.CDLL(str(library)), reason


def _loaded(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:  # such as a home mounted noexec
        raise _NotKept(f"what lies in {library.parent} does not load ({error})") from error


class _NotKept(Exception):
    """Why a library cannot be kept, in words for a log line."""


def _compiler() -> list[str]:
    if os.name != "posix":
        raise OSError("it is for Linux and macOS")
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "")
    if not compiler:
        raise OSError("no C++ compiler found (set CXX, or install g++)")
    return compiler


def _target(compiler: list[str]) -> str:
    """The compiler's version and the processor's instruction sets, as predefined macros: a library fits no other."""
    command = [*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def _built(compiler: list[str], source: str, flags: Sequence[str]) -> bytes:
    """The bytes of the library, and their hash after them: what follows an ELF or Mach-O file is not read."""
    with tempfile.TemporaryDirectory(prefix="ibnorm_hf-") as folder:
        built = Path(folder) / "kernel.so"
        command = [*compiler, *flags, "-x", "c++", "-", "-o", str(built)]
        done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise OSError(f"{compiler[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
        code = built.read_bytes()
    return code + hashlib.sha256(code).digest()


def _private_folder() -> Path:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ibnorm_hf"
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache.resolve() / "kernels"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise _NotKept(f"{folder} is not a folder of this user's own")
        for parent in folder.parents:
            if parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                raise _NotKept(f"everybody may rename what lies in {parent}")
        if stat.S_IMODE(found.st_mode) != 0o700:
            # Others may have put something there: nothing in it is believed.
            folder.chmod(0o700)
            _remove(list(folder.iterdir()))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        raise _NotKept(f"no private folder for it ({error})") from error
    return folder


def _is_sound(library: Path) -> bool:
    """Whether the file is the user's own, closed to others, and whole."""
    try:
        found = library.lstat()
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022
        content = library.read_bytes() if own else b""
    except OSError:
        return False
    return len(content) > _DIGEST and hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _keep(library: Path, content: bytes) -> None:
    """Put a whole file in its place. One that another process has put there meanwhile, and may have mapped, stays."""
    folder = library.parent
    _remove([path for path in folder.glob("*.part") if time.time() - path.lstat().st_mtime > _STALE_AFTER])
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, suffix=".part")
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if library.exists() and not _is_sound(library):
                library.unlink()  # never written over: what is mapped elsewhere keeps its bytes
            try:
                os.link(part, library)
            except FileExistsError:
                pass
            except OSError:  # a disk without links
                part.replace(library)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise _NotKept(f"{folder} cannot be written ({error})") from error
    if not _is_sound(library):
        raise _NotKept(f"{library} is not what was written")


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
