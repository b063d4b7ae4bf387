# SPDX-License-Identifier: Apache-2.0
"""A full disk and exhausted memory, told as one sentence: the libraries below raise a dozen kinds of error for them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ...common.errors import UserError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a limit on file sizes is reached",
}


@contextmanager
def told(*, folder: Path, space: str, memory: str) -> Iterator[None]:
    """Turn a full disk, exhausted memory or a lost process inside the block into a UserError with exit code 1.

    Args:
        folder: where the block writes, named if the error itself names no file.
        space: what to do about a full disk.
        memory: what to lower when memory runs out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = full_disk(error)
        if reason:
            where = getattr(error, "filename", None) or folder
            raise UserError(f"{reason}: {where} could not be written; {space}", exit_code=1) from error
        if out_of_memory(error):
            raise UserError(f"out of memory: {memory}", exit_code=1) from error
        if peer_lost(error):
            reason = " ".join(str(error).split())[-120:]
            raise UserError(
                f"another process of this run has ended ({reason}): its own output says why; checkpoints are unharmed, "
                "and the same command goes on from the newest",
                exit_code=1,
            ) from error
        raise


@contextmanager
def loading(checkpoint: Path) -> Iterator[None]:
    """Any failure inside the block is the checkpoint's: its files are as they were written, but not for this run.

    Pickled code ends here as well: what `weights_only` refuses is never executed.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"checkpoint {checkpoint} cannot be loaded into this run: {reason}") from error


def full_disk(error: BaseException) -> str | None:
    """Why a write found no room, or None if ``error`` is about something else."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return _FULL[error.errno]
    text = str(error)
    # safetensors and tokenizers carry the number in their text, torch.save nothing but a wrong position.
    for number, reason in _FULL.items():
        if f"os error {number})" in text:
            return reason
    if isinstance(error, RuntimeError) and ("inline_container" in text or "PytorchStreamWriter" in text):
        return "the disk is full, or a limit on file sizes was hit"
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that host or device memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory")
    return isinstance(error, (RuntimeError, OSError)) and any(word in str(error) for word in words)


def peer_lost(error: BaseException) -> bool:
    """Whether ``error`` says that another process of the run is gone."""
    if not torch.distributed.is_available() or not isinstance(error, RuntimeError | ConnectionError):
        return False
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "NCCL error")
    known = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
    return known and any(word in str(error) for word in words)
