# SPDX-License-Identifier: Apache-2.0
"""Text -> token ids, in this process or in several; the ids do not depend on how many.

A worker is this very file run as a program, which speaks lengths and bytes over its standard streams and ends
when they close. So it needs no fork of a process full of threads, unpickles nothing, and does not outlive a parent
that was killed. Only `tokenizers` and numpy are imported here: a worker starts in 0.3 s and takes 29 MB, where one of
``concurrent.futures``, spawned, imports this package with torch and transformers (9 s, 458 MB, measured on 2 cores) and
runs a user's script again that has no ``__main__`` guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, Any, TypeVar

import numpy as np

T = TypeVar("T")
# A text, or (text, [(first, last), ...]): the ranges of its characters outside of which tokens are masked.
Item = str | tuple[str, list[tuple[int, int]]]
_LENGTH = struct.Struct("<Q")


class Encoder:
    """Encodes batches of items by a tokenizer, in order, with at most ``workers + 1`` batches in memory.

    Tokenizers without a Rust backend are called in this process, whatever ``workers`` is.
    """

    def __init__(self, tokenizer: Any, workers: int = 1) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._tokenizer = tokenizer
        self._backend = None if backend is None else _plain(backend.to_str())
        self._free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.workers = workers if backend is not None and workers > 1 else 1

    def __enter__(self) -> Encoder:
        if self.workers > 1 and self._backend is not None:
            environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
            for _ in range(self.workers):
                process = subprocess.Popen(
                    [sys.executable, os.path.abspath(__file__)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
                self._processes.append(process)
                assert process.stdin is not None
                _send(process.stdin, self._backend.to_str().encode())
                self._free.put(process)
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()

    def __call__(self, texts: list[Item]) -> list[np.ndarray]:
        """Ids of each item, by this process; ids outside of an item's spans are masked, as ``~id``."""
        if self._backend is not None:
            return _ids(self._backend, texts)
        ids = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [np.asarray(row, np.int32) for row in ids]

    def map(self, batches: Iterable[tuple[list[Item], T]]) -> Generator[tuple[list[np.ndarray], T], None, None]:
        """Encode (items, anything) pairs; yields (ids, the same thing) in the order given."""
        if self.workers == 1:
            for texts, extra in batches:
                yield self(texts), extra
            return
        waiting: deque[tuple[Future[list[np.ndarray]], T]] = deque()
        with ThreadPoolExecutor(self.workers) as threads:
            for texts, extra in batches:
                waiting.append((threads.submit(self._ask, texts), extra))
                if len(waiting) > self.workers:
                    future, done = waiting.popleft()
                    yield future.result(), done
            while waiting:
                future, done = waiting.popleft()
                yield future.result(), done

    def _ask(self, texts: list[Item]) -> list[np.ndarray]:
        process = self._free.get()
        try:
            assert process.stdin is not None and process.stdout is not None
            _send(process.stdin, json.dumps(texts).encode())
            lengths = np.frombuffer(_receive(process.stdout), "<i8")
            ids = np.frombuffer(_receive(process.stdout), "<i4")
        except (EOFError, OSError):
            # Most likely killed for its memory.
            raise MemoryError(f"a tokenizing worker ended with code {process.wait()}") from None
        finally:
            self._free.put(process)  # a dead one too: whoever gets it fails at once instead of waiting for ever
        return np.split(ids, np.cumsum(lengths)[:-1])


def _ids(backend: Any, items: list[Item]) -> list[np.ndarray]:
    if not items or isinstance(items[0], str):
        return [np.asarray(e.ids, "<i4") for e in backend.encode_batch_fast(items, add_special_tokens=False)]
    texts, spans = [item[0] for item in items], [item[1] for item in items]
    encoded = backend.encode_batch(texts, add_special_tokens=False)
    return [_masked(one, inside) for one, inside in zip(encoded, spans, strict=True)]


def _masked(encoded: Any, spans: Any) -> np.ndarray:
    """The ids of one text; those that have no character within a span are masked."""
    ids = np.asarray(encoded.ids, "<i4")
    starts, ends = np.asarray(encoded.offsets, np.int64).reshape(-1, 2).T
    inside = np.zeros(len(ids), bool)
    for first, last in spans:
        inside |= (starts < last) & (ends > first)
        # White space that a tokenizer leaves out of its places stands at the end of what it belongs to.
        inside |= (starts == ends) & (first < starts) & (starts <= last)
    return np.where(inside, ids, ~ids)


def _plain(text: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(_LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content


def _work(requests: IO[bytes], answers: IO[bytes]) -> None:
    tokenizer = _plain(_receive(requests).decode())
    while True:
        ids = _ids(tokenizer, json.loads(_receive(requests)))
        _send(answers, np.asarray([len(row) for row in ids], "<i8").tobytes())
        _send(answers, np.concatenate(ids).tobytes())


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # whoever asked is gone
        _work(sys.stdin.buffer, sys.stdout.buffer)
