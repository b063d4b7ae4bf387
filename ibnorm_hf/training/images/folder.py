# SPDX-License-Identifier: Apache-2.0
"""A folder of images by one plain rule: a class a folder, whatever its name, and no word of a name means anything.

``ROOT/CLASS/**/IMAGE``, or ``ROOT/SPLIT/CLASS/**/IMAGE`` where the folder of the training split holds folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ...common.errors import UserError
from ...modeling.image_processing_ibnorm import fit

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MOST_CHECKED = 50_000  # images that are decoded once before training; of more, only their heads are read
_VALIDATION = ("validation", "val", "valid", "test")


class FolderImages(Dataset[dict[str, Any]]):
    """Files and their labels, decoded when read: RGB, shorter side resized, square centre, uint8."""

    def __init__(self, root: Path, files: Sequence[tuple[Path, int]], size: int) -> None:
        self.root, self.files, self.size = root, list(files), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.files[int(index)]
        image = _decoded(path)
        if image is None:
            raise UserError(f"image {path} is damaged; repair or remove it", exit_code=1)
        return {"pixel_values": fit(image, self.size, self.size), "labels": torch.tensor(label)}

    def sha256(self) -> str:
        """Digest of names, labels and bytes of all files."""
        checksum = hashlib.sha256(str(self.size).encode())
        for path, label in self.files:
            checksum.update(f"{path.relative_to(self.root)}:{label}:".encode())
            checksum.update(hashlib.sha256(path.read_bytes()).digest())
        return checksum.hexdigest()


@dataclass(frozen=True)
class Folder:
    """What a folder holds: (file, label) pairs, names of classes, and what was left out of it."""

    train: list[tuple[Path, int]]
    validation: list[tuple[Path, int]]
    classes: tuple[str, ...]
    side: int | None  # of all images, if they are squares of one size
    remarks: list[str]


def read_folder(root: Path, *, train: str, validation: str | None, most_bad: int) -> Folder:
    """Find and check the images of a folder.

    Args:
        train, validation: names of the splits' folders, where there are such; without a validation split, a tenth of
            each class is held out, at least one image.
        most_bad: damaged images to leave out before refusing.

    Raises:
        UserError: no images, a class too small to be split or only in validation, or too many damaged files.
    """
    split = (root / train).is_dir() and any(p.is_dir() for p in (root / train).iterdir())
    folders = sorted(p.name for p in root.iterdir() if p.is_dir())
    if split and validation is None:
        validation = next((name for name in _VALIDATION if name in folders), None)
    if validation is not None and (not split or validation not in folders):
        raise UserError(f"image folder {root} has no split '{validation}', only {', '.join(folders[:8]) or 'files'}")
    home = root / train if split else root
    classes = _classes(home)
    if len(classes) < 2:
        raise UserError(f"image folder {home} needs a sub-folder of images for each of at least two classes")
    checker = _Checker(most_bad)
    found = checker.images(home, classes)
    for name, files in zip(classes, found, strict=True):
        if len(files) < (1 if validation else 2):
            need = "1 image" if validation else "2, one of them to validate on"
            raise UserError(f"class '{name}' of image folder {home} has {len(files)} readable images and needs {need}")
    if validation is not None:
        other = [name for name in _classes(root / validation) if name not in classes]
        if other:
            raise UserError(f"image folder {root / validation} has classes that {home} has not: {', '.join(other[:5])}")
        held = checker.images(root / validation, classes)
        if not any(held):
            raise UserError(f"image folder {root / validation} holds no readable image of these classes")
    else:
        found, held = _parted(found)
    used = {train, validation} if split else set(classes)
    checker.left_out += sum(p.is_file() for name in folders if name not in used for p in (root / name).rglob("*"))
    pairs = [[(path, label) for label, files in enumerate(part) for path in files] for part in (found, held)]
    return Folder(pairs[0], pairs[1], classes, checker.side(), checker.remarks())


def _classes(home: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in home.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _parted(found: list[list[Path]]) -> tuple[list[list[Path]], list[list[Path]]]:
    """Hold out a tenth of each class, chosen by a fixed permutation."""
    kept, held = [], []
    for files in found:
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
        count = max(1, round(len(files) / 10))
        held.append([files[i] for i in sorted(order[:count])])
        kept.append([files[i] for i in sorted(order[count:])])
    return kept, held


class _Checker:
    """Looks at every image once; counts and names what cannot be used."""

    def __init__(self, most_bad: int) -> None:
        self.most_bad, self.left_out, self.seen = most_bad, 0, 0
        self.bad: list[Path] = []
        self._sizes: set[tuple[int, int]] = set()

    def images(self, home: Path, classes: tuple[str, ...]) -> list[list[Path]]:
        """The readable images of each class."""
        return [[p for p in sorted((home / name).rglob("*")) if p.is_file() and self._usable(p)] for name in classes]

    def _usable(self, path: Path) -> bool:
        if path.suffix.lower() not in ENDINGS:
            self.left_out += 1
            return False
        self.seen += 1
        image = _decoded(path, whole=self.seen <= MOST_CHECKED)
        if image is None:
            self.bad.append(path)
            if len(self.bad) > self.most_bad:
                raise UserError(
                    f"more than max_bad_records = {self.most_bad} damaged images, first "
                    f"{', '.join(map(str, self.bad[:5]))}; repair them or raise max_bad_records"
                )
            return False
        self._sizes.add(image.size)
        return True

    def side(self) -> int | None:
        width, height = next(iter(self._sizes), (0, 1))
        return width if len(self._sizes) == 1 and width == height else None

    def remarks(self) -> list[str]:
        out = []
        if self.bad:
            out.append(f"left out {len(self.bad)} damaged images, first {', '.join(map(str, self.bad[:5]))}")
        if self.left_out:
            out.append(f"left out {self.left_out} files that are no images or belong to no class")
        return out


def _decoded(path: Path, whole: bool = True) -> Any:
    """A PIL image, or None if the file is none or is cut off."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if whole:
                image.load()
            return image if not whole else image.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
