# SPDX-License-Identifier: Apache-2.0
"""Labelled images: the embedded digits, IDX files, folders of images, data sets of the Hub."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...common.errors import UserError
from ...common.hub_commit import require_commit, resolve_commit
from ...common.online import hub_or_cache, reason
from ...modeling.image_processing_ibnorm import fit
from .folder import FolderImages, read_folder

FASHION_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_FASHION_LABELS = (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)  # its first training images; MNIST's are 5, 0, 4, 1, 9, ...
_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "validation": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class Images(Dataset[dict[str, Any]]):
    """Images and labels in memory: ``pixels`` (N, C, H, W) uint8, ``labels`` (N,) int64."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        if len(pixels) != len(labels):
            raise UserError(f"the data set has {len(pixels)} images and {len(labels)} labels; it is damaged")
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}

    def select(self, indices: Tensor | Sequence[int]) -> Images:
        """The images at these places, in this order."""
        where = torch.as_tensor(indices)
        return Images(self.pixels[where], self.labels[where])

    def sha256(self) -> str:
        """Digest of all pixels and labels."""
        checksum = hashlib.sha256(self.pixels.numpy().tobytes())
        checksum.update(self.labels.numpy().tobytes())
        return checksum.hexdigest()


@dataclass(frozen=True)
class ImageData:
    """A training and a validation set, the names of the classes, and where they are from."""

    train: Any
    validation: Any
    classes: tuple[str, ...]
    source: str
    remarks: tuple[str, ...] = ()  # what of the data was left out
    commit: str | None = None  # of a data set of the Hub

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        c, h, w = self.train[0]["pixel_values"].shape
        return c, h, w


def load_digits() -> ImageData:
    """scikit-learn's 1,797 digits of 8 x 8, every fifth of a fixed permutation held out; no download.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as digits
    except ImportError:
        raise UserError("the digits need scikit-learn; install ibnorm_hf[vision]") from None
    data = digits()
    pixels = torch.from_numpy((data.images * (255 / 16)).round().astype(np.uint8))[:, None]
    everything = Images(pixels, torch.from_numpy(data.target.astype(np.int64)))
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    held_out = torch.arange(len(order)) % 5 == 0
    classes = tuple(str(i) for i in range(10))
    return ImageData(everything.select(order[~held_out]), everything.select(order[held_out]), classes, "digits")


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds the four files of MNIST and its relatives."""
    return _idx_file(folder, _IDX["train"][0]) is not None


def load_idx(folder: str | Path) -> ImageData:
    """MNIST, Fashion-MNIST and the like: four IDX files, gzipped or not; the second pair validates.

    Raises:
        UserError: a file is absent or is no IDX file.
    """
    folder = Path(folder)
    parts = []
    for images, labels in _IDX.values():
        pixels = torch.from_numpy(_read_idx(folder, images))
        parts.append(Images(pixels[:, None], torch.from_numpy(_read_idx(folder, labels)).long()))
    count = int(max(part.labels.max() for part in parts)) + 1
    # Known by its content: a folder may have any name.
    fashion = count == len(FASHION_CLASSES) and tuple(parts[0].labels[:10].tolist()) == _FASHION_LABELS
    classes = FASHION_CLASSES if fashion else tuple(str(i) for i in range(count))
    return ImageData(parts[0], parts[1], classes, "fashion-mnist" if fashion else "idx")


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    path = _idx_file(folder, name)
    if path is None:
        raise UserError(f"{folder} has no {name} or {name}.gz; give the folder that holds the four IDX files")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dimensions = int.from_bytes(raw[:2], "big"), raw[2], raw[3]
        shape = np.frombuffer(raw, ">i4", dimensions, 4)
        values = np.frombuffer(raw, np.uint8, -1, 4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is no IDX file or is damaged: {error}") from None
    if zeros or kind != 8 or len(values) != shape[0]:
        raise UserError(f"{path} is no IDX file of bytes")
    return values.copy()


class HubImages(Dataset[dict[str, Any]]):
    """A map-style data set of ``datasets``, decoded when read: RGB, shorter side resized, square centre, uint8."""

    def __init__(self, rows: Any, image_column: str, label_column: str, size: int) -> None:
        self.rows, self.image, self.label, self.size = rows, image_column, label_column, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[int(index)]
        return {
            "pixel_values": fit(row[self.image], self.size, self.size),
            "labels": torch.tensor(int(row[self.label])),
        }


def load_datasets(
    name: str, *, config: str | None, revision: str | None, size: int, train: str, validation: str | None, cache: Path
) -> ImageData:
    """A data set of the Hub.

    Args:
        revision: a commit, or a name that stands for one now; the one that it stands for is what is loaded.
        size: side of the squares that images are cut to.
        train, validation: names of the splits; without a validation split, a tenth of the training one is held out.

    Raises:
        UserError: it cannot be loaded, has no such split, or no column of images and of class labels.
    """
    from datasets import ClassLabel, Image, load_dataset

    where: dict[str, Any] = {"cache_dir": str(cache / "datasets")}
    commit = resolve_commit(name, revision)
    try:
        with hub_or_cache():
            splits = load_dataset(name, config, revision=commit or revision, **where)
    except Exception as error:  # the hub, the file system and arrow raise kinds of their own
        raise UserError(f"image data {name} cannot be loaded: {reason(error)}") from None
    for split in (train, validation):
        if split is not None and split not in splits:
            raise UserError(f"image data {name} has no split '{split}', only {', '.join(splits)}")
    rows = splits[train]
    require_commit(rows, name, commit)
    columns = {kind: [n for n, f in rows.features.items() if isinstance(f, kind)] for kind in (Image, ClassLabel)}
    if not columns[Image] or not columns[ClassLabel]:
        raise UserError(f"image data {name} has no column of images, or none of class labels")
    image = columns[Image][0]
    label = next((n for n in ("label", "fine_label") if n in columns[ClassLabel]), columns[ClassLabel][0])
    if validation is None and "validation" in splits:
        validation = "validation"
    if validation is None:
        try:
            parts = rows.train_test_split(test_size=0.1, seed=0, stratify_by_column=label)
        except ValueError as error:
            raise UserError(f"image data {name} cannot hold out a tenth: {error}; give validation_split") from None
        rows, held_out = parts["train"], parts["test"]
    else:
        held_out = splits[validation]
    for part, split in ((rows, train), (held_out, validation or train)):
        if label not in part.column_names or min(part[label][:], default=-1) < 0:
            raise UserError(f"split '{split}' of image data {name} has images without a label; choose another split")
    classes = tuple(rows.features[label].names)
    parts = [HubImages(part, image, label, size) for part in (rows, held_out)]
    return ImageData(parts[0], parts[1], classes, name, commit=commit)


def load_folder(root: Path, *, size: int | None, train: str, validation: str | None, most_bad: int) -> ImageData:
    """A folder of images, a class a folder; see `read_folder`. ``size`` None takes the images' own, if it is one."""
    found = read_folder(root, train=train, validation=validation, most_bad=most_bad)
    if size is None and found.side is None:
        raise UserError(f"the images of {root} are no squares of one size; give image_size")
    side = size or found.side or 0
    parts = [FolderImages(root, files, side) for files in (found.train, found.validation)]
    return ImageData(parts[0], parts[1], found.classes, str(root), tuple(found.remarks))
