# SPDX-License-Identifier: Apache-2.0
"""Tokenizing in several processes: the same ids, blocks and counts as in one, and no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.folder.failures import told
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.text import batches
from ibnorm_hf.training.text import prepare as preparing
from ibnorm_hf.training.text.encode import Encoder
from ibnorm_hf.training.text.tokenizer import train_bpe

TEXTS = [f"Document {i} tells of {i * i} things — größer als {i}. " * (i % 7 + 1) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(iter(TEXTS), 320)


def test_ids_do_not_depend_on_the_workers(tokenizer):
    batches = [(TEXTS[i : i + 20], i) for i in range(0, 300, 20)] + [([""], 300)]
    expected = [row for row in tokenizer([*TEXTS, ""], add_special_tokens=False)["input_ids"]]
    for workers in (1, 3):
        with Encoder(tokenizer, workers) as encoder:
            found, numbers = [], []
            for ids, number in encoder.map(iter(batches)):
                found += ids
                numbers.append(number)
        assert numbers == [number for _, number in batches]
        assert [row.tolist() for row in found] == expected


def test_blocks_do_not_depend_on_the_workers(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_CHARS", 400)
    lines = [json.dumps({"text": text}) for text in TEXTS]
    # Broken lines all along: those beyond the budget are read ahead by workers, and no part of the blocks.
    lines = [line for text in lines for line in (text, "{broken")]
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(lines))
    results = []
    for workers in (1, 3):
        monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / f"cache{workers}"))
        data = DataArguments(
            corpus=str(path),
            block_size=16,
            validation_fraction=0.1,
            tokenizer_vocab_size=320,
            token_budget=8_000,
            max_bad_records=1000,
            prepare_workers=workers,
        )
        results.append(preparing.prepare_data(data, vocab_size=320, run_tokens=0, say=lambda text: None))
    one, three = results
    assert one.folder.name == three.folder.name
    assert np.array_equal(one.train[:]["input_ids"], three.train[:]["input_ids"])
    assert np.array_equal(one.validation[:]["input_ids"], three.validation[:]["input_ids"])
    assert one.description["bad_records"] == three.description["bad_records"]
    assert 0 < one.description["bad_records"]["count"] < 300


def test_a_tokenizer_without_backend_is_called_here():
    class Slow:
        def __call__(self, texts, **keys):
            return {"input_ids": [[len(text)] for text in texts]}

    with Encoder(Slow(), 4) as encoder:
        assert encoder.workers == 1
        assert [row.tolist() for row in encoder(["ab", "c"])] == [[2], [1]]


@pytest.mark.faults
def test_a_killed_worker_is_told(tokenizer, tmp_path: Path):
    said = pytest.raises(UserError, match="out of memory: lower prepare_workers")
    with said, told(folder=tmp_path, space="", memory="lower prepare_workers"), Encoder(tokenizer, 2) as encoder:
        for process in encoder._processes:
            process.send_signal(signal.SIGKILL)
        list(encoder.map((TEXTS, i) for i in range(5)))


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_workers_end_with_a_killed_parent():
    code = (
        "import time\n"
        "from ibnorm_hf.training.text.encode import Encoder\n"
        "from tokenizers import Tokenizer, models\n"
        "class T: backend_tokenizer = Tokenizer(models.BPE())\n"
        "with Encoder(T(), 2) as e:\n"
        "    print(*[p.pid for p in e._processes], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(alive(worker) for worker in workers)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive a killed parent"
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
