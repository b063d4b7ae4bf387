# SPDX-License-Identifier: Apache-2.0
"""What is compiled runs in every later process: only from a folder of one's own, only whole, and never half-written."""

import os
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ibnorm_hf.modeling import kernel_cache
from ibnorm_hf.modeling.kernel_cache import load_library

SOURCE = 'extern "C" int answer() { return 42; }'
FLAGS = ("-shared", "-fPIC")


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "shared"))
    return tmp_path / "cache" / "ibnorm_hf" / "kernels"


@pytest.fixture
def builds(monkeypatch):
    """Each build appends to this list."""
    real, seen = kernel_cache._built, []
    monkeypatch.setattr(kernel_cache, "_built", lambda *given: seen.append(given) or real(*given))
    return seen


def answer():
    library, not_kept = load_library("test", SOURCE, FLAGS)
    assert library.answer() == 42
    return not_kept


def whole():
    """The bytes of a sound file."""
    return kernel_cache._built(kernel_cache._compiler(), SOURCE, FLAGS)


def plant(folder, content):
    """Put bytes where the library is looked for, before anything has loaded it; returns the path."""
    folder.mkdir(parents=True, mode=0o700)
    key = kernel_cache.hashlib.sha256(
        repr((SOURCE, FLAGS, torch.__version__, kernel_cache._target(kernel_cache._compiler()))).encode()
    )
    path = folder / f"test-{key.hexdigest()[:32]}.so"
    path.write_bytes(content)
    return path


def test_kept_for_the_user_alone_and_nowhere_else(kernels, builds, tmp_path):
    assert answer() is None and answer() is None and len(builds) == 1
    (library,) = kernels.iterdir()
    assert stat.S_IMODE(kernels.stat().st_mode) == 0o700
    assert not stat.S_IMODE(library.stat().st_mode) & 0o077
    assert not (tmp_path / "shared").exists()


def test_a_home_is_expanded_and_without_one_nothing_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert answer() is None and list(tmp_path.glob("caches/ibnorm_hf/kernels/test-*.so"))
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-of-this-name/caches")
    assert "no private folder for it" in answer()


@pytest.mark.parametrize("change", ["source", "flags", "torch", "target"])
def test_all_that_decides_a_library_names_it(kernels, builds, monkeypatch, change):
    answer()
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0.0")
    if change == "target":
        monkeypatch.setattr(kernel_cache, "_target", lambda compiler: "another processor")
    load_library("test", SOURCE + "\n" * (change == "source"), (*FLAGS, "-O1") if change == "flags" else FLAGS)
    assert len(builds) == 2 and len(list(kernels.iterdir())) == 2


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["empty", "half", "one bit", "no hash", "directory"])
def test_a_damaged_library_is_never_mapped_but_built_anew(kernels, builds, damage):
    content = whole()
    builds.clear()
    broken = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "one bit": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        "no hash": content[:-32],
        "directory": b"",
    }[damage]
    path = plant(kernels, broken)
    if damage == "directory":
        path.unlink()
        path.mkdir()
        assert "is not what was written" in answer() or "cannot be written" in answer()
        return
    inode = path.stat().st_ino
    assert answer() is None and len(builds) == 1
    assert path.read_bytes() == content
    assert path.stat().st_ino != inode  # another file: processes that have mapped the old one keep its bytes


def test_what_another_process_has_put_there_stays(kernels, monkeypatch):
    """Two processes build at once; the second finds a library that the first may have mapped."""
    first = {}

    def built_elsewhere_meanwhile(*given):
        content = real(*given)
        first["inode"] = plant(kernels, content).stat().st_ino
        return content

    kernels.parent.mkdir(parents=True)
    real = kernel_cache._built
    monkeypatch.setattr(kernel_cache, "_built", built_elsewhere_meanwhile)
    monkeypatch.setattr(kernel_cache, "_private_folder", lambda: kernels)
    assert answer() is None
    (library,) = kernels.iterdir()
    assert library.stat().st_ino == first["inode"]


def test_many_at_once_end_with_one_library(kernels):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: answer(), range(4))) == [None] * 4
    assert len(list(kernels.iterdir())) == 1


def test_a_folder_that_others_could_write_is_closed_and_emptied(kernels, builds):
    planted = plant(kernels, whole())
    kernels.chmod(0o777)
    (kernels / "more").mkdir()
    builds.clear()
    assert answer() is None and len(builds) == 1
    assert stat.S_IMODE(kernels.stat().st_mode) == 0o700
    assert list(kernels.iterdir()) == [planted]


@pytest.mark.parametrize("case", ["another's file", "writable file", "link"])
def test_a_library_that_is_not_the_users_own_is_not_loaded(kernels, builds, monkeypatch, case, tmp_path):
    path = plant(kernels, whole())
    if case == "another's file":
        real, me = os.geteuid(), []
        # The folder is asked for first, then the file, then the new file: the first file belongs to another.
        monkeypatch.setattr(os, "geteuid", lambda: real + (me.append(1) or len(me) == 2))
    if case == "writable file":
        path.chmod(0o666)
    if case == "link":
        elsewhere = tmp_path / "elsewhere.so"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    builds.clear()
    answer()
    assert len(builds) >= 1
    assert not path.is_symlink()


@pytest.mark.parametrize("case", ["another's folder", "link", "file", "everybody's parent", "no rights", "full disk"])
def test_without_a_private_folder_the_process_builds_for_itself(kernels, builds, monkeypatch, case, tmp_path):
    expected = "is not a folder of this user's own"
    kernels.parent.mkdir(parents=True)
    if case == "another's folder":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    elif case == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        kernels.symlink_to(tmp_path / "elsewhere")
    elif case == "file":
        kernels.write_text("")
        expected = "no private folder for it"
    elif case == "everybody's parent":
        kernels.parent.chmod(0o777)
        expected = "everybody may rename what lies in"
    elif case == "no rights":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
        expected = "no private folder for it"
    else:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(kernel_cache.tempfile, "mkstemp", full)
        expected = "No space left on device"
    assert expected in answer()
    assert len(builds) == 1 and not list(tmp_path.rglob("*.so"))


def test_leftovers_of_killed_processes_go_and_those_at_work_stay(kernels):
    kernels.mkdir(parents=True, mode=0o700)
    for name, age in (("old", 7200), ("young", 60)):
        (kernels / f"{name}.part").write_bytes(b"half")
        os.utime(kernels / f"{name}.part", (time.time() - age,) * 2)
    answer()
    assert {p.suffix for p in kernels.iterdir()} == {".so", ".part"}
    assert [p.name for p in kernels.glob("*.part")] == ["young.part"]


@pytest.mark.faults
def test_a_killed_process_leaves_no_library(kernels, monkeypatch):
    """Killed while the compiler runs: the next one builds."""
    compiler = kernels.parent / "slow-g++"
    kernels.parent.mkdir(parents=True)
    compiler.write_text('#!/bin/sh\ncase "$*" in *-dM*) exec g++ "$@";; esac\nkill -9 $PPID\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    child = os.fork()
    if not child:
        load_library("test", SOURCE, FLAGS)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    monkeypatch.delenv("CXX")
    assert answer() is None and len(list(kernels.glob("*"))) == 1
