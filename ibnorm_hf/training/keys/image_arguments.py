# SPDX-License-Identifier: Apache-2.0
"""The keys of a recipe that trains on images, in place of those of text."""

# No `from __future__ import annotations`: HfArgumentParser needs real types.
from dataclasses import dataclass, field
from typing import ClassVar

AUGMENTATIONS = ("plain", "crop", "crop-flip", "resized-crop-flip")


@dataclass
class ImageArguments:
    """Which images, cut and changed how."""

    # Batch statistics are those of a micro-batch, crops are drawn a micro-batch of a process at a time, and a forward
    # pass that is repeated counts twice in the running statistics.
    also_bound: ClassVar[frozenset[str]] = frozenset(
        {
            "per_device_train_batch_size",
            "processes",
            "activation_checkpointing",
            "activation_checkpointing_kwargs",
        }
    )

    free: ClassVar[frozenset[str]] = frozenset({"max_bad_records"})

    images: str = field(
        default="digits",
        metadata={
            "help": "`digits` (scikit-learn's, no download), a folder of IDX files (Fashion-MNIST), a folder with one "
            "sub-folder of images a class, or the name of a data set on the Hub (cifar10, cifar100, imagenet-1k)."
        },
    )
    images_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    images_revision: str | None = field(default=None, metadata={"help": "Commit or tag of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split of a Hub data set or folder to train on."})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Split to validate on; null: its `validation`, or a tenth held out of the training split."},
    )
    classes: int | None = field(
        default=None,
        metadata={"help": "Classes of the data; null reads them there, which a dry run of Hub data cannot."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the model's input; null takes the images as they are (digits, IDX)."}
    )
    stored_size: int | None = field(
        default=None,
        metadata={"help": "Side that files are decoded to before crops are cut from them; null: image_size."},
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each channel in units of 1; null measures it (digits, IDX) or is 0.5."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each channel; null measures it or is 0.5."}
    )
    augmentation: str = field(
        default="crop-flip",
        metadata={"help": f"Change of training images: {', '.join(AUGMENTATIONS)}."},
    )
    crop_padding: int = field(default=4, metadata={"help": "Pixels of zeros around an image that crops are cut from."})
    crop_area: float = field(default=0.08, metadata={"help": "Smallest share of the image that resized-crop cuts."})
    max_bad_records: int = field(
        default=100, metadata={"help": "Damaged images of a folder to leave out, named, before stopping."}
    )
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Statistics over the batch of all processes: IBNorm and BatchNorm."}
    )

    def rules(self) -> list[tuple[str, bool, str]]:
        """(key, whether its value is right, what is wrong otherwise)."""
        sizes = (self.image_size, self.stored_size)
        smaller = None not in sizes and (self.stored_size or 0) < (self.image_size or 0)
        return [
            ("augmentation", self.augmentation in AUGMENTATIONS, f"must be one of {', '.join(AUGMENTATIONS)}"),
            ("classes", self.classes is None or self.classes > 1, "must be at least 2"),
            ("image_size", self.image_size is None or self.image_size > 0, "must be at least 1"),
            ("stored_size", not smaller, "must be at least image_size"),
            ("crop_padding", self.crop_padding >= 0, "must not be negative"),
            ("crop_area", 0 < self.crop_area <= 1, "must lie between 0 and 1"),
            ("image_std", self.image_std is None or min(self.image_std, default=0) > 0, "must be above 0"),
            (
                "image_mean",
                (self.image_mean is None) == (self.image_std is None)
                and len(self.image_mean or ()) == len(self.image_std or ()),
                "and image_std have one number a channel, or neither is given",
            ),
        ]
