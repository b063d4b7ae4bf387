# SPDX-License-Identifier: Apache-2.0
"""The main job with a second process that sees a shared disk late: `stale_view.py VIEW RECIPE --key value`

Network file systems keep what they were last told about a file. VIEW is what process 1 sees of prepared data that
process 0 has just made, or found: `missing` marks and folders, an `old` mark, or `late` shards, for a few seconds.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_stat, _read_text = os.stat, Path.read_text
_first_asked: dict[str, float] = {}


def _is_prepared(path: Any) -> bool:
    parts = Path(os.fspath(path)).parts if isinstance(path, (str, os.PathLike)) else ()
    kept = [part for part in parts[-3:] if part in ("blocks", "tokenizers")]
    return bool(kept) and not parts[-1].startswith(".") and not parts[-1].endswith(".lock") and parts[-1] not in kept


def _stat_without(path: Any, *words: Any, **keys: Any) -> os.stat_result:
    if _is_prepared(path) and not str(path).endswith(".arrow"):
        raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
    return _stat(path, *words, **keys)


def _stat_late(path: Any, *words: Any, **keys: Any) -> os.stat_result:
    if _is_prepared(path) and str(path).endswith(".arrow"):
        asked = _first_asked.setdefault(str(path), time.monotonic())
        if time.monotonic() - asked < 3:
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
    return _stat(path, *words, **keys)


def _read_old(self: Path, *words: Any, **keys: Any) -> str:
    text = _read_text(self, *words, **keys)
    if self.name != "data.json" or self.parent.parent.name != "blocks":
        return text
    mark = json.loads(text)
    mark["train"]["shards"][0]["bytes"] += 8
    return json.dumps(mark)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        if sys.argv[1] == "missing":
            os.stat = _stat_without  # type: ignore[assignment]
        elif sys.argv[1] == "late":
            os.stat = _stat_late  # type: ignore[assignment]
        else:
            Path.read_text = _read_old  # type: ignore[method-assign,assignment]

    from ibnorm_hf.cli import main

    sys.exit(main(["pretrain", *sys.argv[2:]]))
