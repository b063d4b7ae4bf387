# SPDX-License-Identifier: Apache-2.0
"""The packed blocks that a run was validated on, found through its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError, one_line
from .paths import cache_root, file_sha256
from .run import Run

if TYPE_CHECKING:
    from datasets import Dataset


def load_validation_blocks(run: Path, blocks: Path | None) -> tuple[Dataset, dict[str, Any]]:
    """The blocks that a run was validated on, (block_size) token ids a row, and their entry in its ``data.json``.

    Raises:
        UserError: they are missing, damaged, or not those of the run.
    """
    from datasets import Dataset, concatenate_datasets

    try:
        content: Any = Run(run).data
        description, name = content["validation"], content["fingerprints"]["blocks"]
        files = [(shard["file"], shard["sha256"]) for shard in description["shards"]]
    except KeyError:
        raise UserError(f"{run / 'data.json'} does not describe validation blocks; give a run of ibnorm-hf") from None
    # The description may come from anywhere: its names must stay in their folder.
    odd = [word for word in (name, *(file for file, _ in files)) if Path(str(word)).name != word]
    if odd:
        raise UserError(f"{run / 'data.json'} is not trusted: it names {one_line(odd[0], 80)}, outside its folder")
    folder = blocks or cache_root() / "blocks" / name
    parts = []
    for file, checksum in files:
        path = folder / file
        if path.is_symlink() or not path.is_file():
            raise UserError(
                f"validation blocks {path} are missing; set IBNORM_CACHE or --blocks to where they are, or make them "
                "again with `ibnorm-hf prepare RECIPE`"
            )
        if file_sha256(path) != checksum:
            raise UserError(f"validation blocks {path} are not those of {run}; give the folder they were made in")
        parts.append(Dataset.from_file(str(path)))
    return concatenate_datasets(parts).with_format("numpy"), description
