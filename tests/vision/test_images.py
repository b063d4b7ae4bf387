# SPDX-License-Identifier: Apache-2.0
"""Where images come from, how they are augmented, and what a damaged source says."""

import gzip
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ibnorm_hf.common import hub_commit
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.paths import digest
from ibnorm_hf.modeling.image_processing_ibnorm import fit, normalize
from ibnorm_hf.training.image_task import ImageTask
from ibnorm_hf.training.images import augment
from ibnorm_hf.training.images.images import load_digits, load_idx
from ibnorm_hf.training.keys.image_arguments import ImageArguments
from ibnorm_hf.training.model.image_build import Views, facts_of, load_images, planned_facts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def idx_bytes(values):
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    """Files as Fashion-MNIST has them: 6 and 4 images of 5 x 5, the training ones gzipped."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 6), ("t10k", 4)):
        for kind, values in (
            ("images-idx3", rng.integers(0, 256, (count, 5, 5), dtype=np.uint8)),
            ("labels-idx1", np.arange(count, dtype=np.uint8) % 3),
        ):
            raw, path = idx_bytes(values), tmp_path / f"{prefix}-{kind}-ubyte"
            if prefix == "train":
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
            else:
                path.write_bytes(raw)
    return tmp_path


def test_digits_are_whole_and_split_once():
    data = load_digits()
    assert (len(data.train), len(data.validation), data.shape) == (1437, 360, (1, 8, 8))
    assert data.train.pixels.dtype == torch.uint8 and data.train.pixels.max() == 255
    rows = torch.cat([data.train.pixels, data.validation.pixels]).flatten(1)
    from sklearn.datasets import load_digits as source

    assert (rows.float() / 255 * 16).sum().item() == pytest.approx(source().images.sum(), rel=1e-3)
    assert set(data.validation.labels.tolist()) == set(range(10))
    assert load_digits().validation.sha256() == data.validation.sha256()


def test_idx_files(idx_folder):
    data = load_idx(idx_folder)
    assert (len(data.train), len(data.validation), data.shape) == (6, 4, (1, 5, 5))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2] and data.classes == ("0", "1", "2")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
    assert np.array_equal(data.train.pixels[:, 0].numpy(), pixels)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t10k-labels-idx1-ubyte", b"", "is no IDX file or is damaged"),
        ("t10k-labels-idx1-ubyte", b"\x00\x00\x09\x01\x00\x00\x00\x02ab", "is no IDX file of bytes"),
        ("t10k-labels-idx1-ubyte", b"\x00\x00\x08\x01\x00\x00\x00\x02ab", "has 4 images and 2 labels; it is damaged"),
        ("t10k-images-idx3-ubyte", b"\x00\x00\x08\x03\x00\x00\x00\x02ab", "is no IDX file or is damaged"),
        ("train-images-idx3-ubyte.gz", b"no gzip", "is no IDX file or is damaged"),
        ("t10k-images-idx3-ubyte", None, "has no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz"),
    ],
)
def test_damaged_idx_files_are_one_sentence(idx_folder, name, content, message):
    (idx_folder / name).unlink()
    if content is not None:
        (idx_folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_idx(idx_folder)


def test_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (12, 20, 3), dtype=np.uint8) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    arguments = ImageArguments(images=str(tmp_path / "pictures"), image_size=8, stored_size=10, validation_split="test")
    data = load_images(arguments)
    assert (len(data.train), len(data.validation), data.classes) == (8, 4, ("cat", "dog"))
    row = data.train[7]
    assert row["pixel_values"].shape == (3, 10, 10) and row["labels"] == 1 and row["pixel_values"].min() >= 90
    facts = facts_of(data, arguments)
    assert (facts.channels, facts.height, facts.classes) == (3, 8, 2)
    views = Views(arguments, facts, data)
    assert views.evaluate(row["pixel_values"][None]).shape == (1, 3, 8, 8)
    for message, options in (
        ("has no split 'tset', only test, train", {"validation_split": "tset", "image_size": 8}),
        ("give image_size", {"validation_split": "test"}),
        ("classes is 3, but .* has 2", {"image_size": 8, "classes": 3, "validation_split": "test"}),
    ):
        with pytest.raises(UserError, match=message):
            load_images(ImageArguments(images=str(tmp_path / "pictures"), **options))


def test_a_square_keeps_the_centre():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200
    assert torch.equal(fit(Image.fromarray(pixels), 4, 4), torch.full((3, 4, 4), 200, dtype=torch.uint8))
    assert fit(Image.new("L", (30, 10)), 5, 5).shape == (3, 5, 5)


def test_plans_know_hub_data_without_it():
    assert planned_facts(ImageArguments(images="ILSVRC/imagenet-1k", image_size=224)).classes == 1000
    with pytest.raises(UserError, match="needs the keys classes and image_size"):
        planned_facts(ImageArguments(images="somebody/something", image_size=224))


def test_random_crop_cuts_each_image_from_its_own_place():
    images = torch.arange(1, 2 * 3 * 5 * 4 + 1, dtype=torch.float32).view(2, 3, 5, 4).repeat(50, 1, 1, 1)
    out = augment.random_crop(images, 2, generator())
    assert out.shape == images.shape and torch.equal(out, augment.random_crop(images, 2, generator()))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places = set()
    for image, source in zip(out, padded, strict=True):
        found = [(t, l) for t in range(5) for l in range(5) if torch.equal(image, source[:, t : t + 5, l : l + 4])]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 20
    assert torch.equal(augment.random_crop(images, 0, generator()), images)


def test_random_flip_flips_about_half():
    images = torch.randn(400, 1, 2, 3, generator=generator(1))
    out = augment.random_flip(images, generator())
    flipped = (out == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(out[~flipped], images[~flipped]) and 150 < flipped.sum() < 250


def test_random_resized_crop():
    ramp = torch.linspace(0, 1, 16).expand(64, 1, 16, 16)
    out = augment.random_resized_crop(ramp, 8, generator())
    assert out.shape == (64, 1, 8, 8) and out.min() >= 0 and out.max() <= 1
    spans = out[:, 0, 0, -1] - out[:, 0, 0, 0]
    assert (spans > 0).all() and spans.std() > 0.05  # windows of different widths, none mirrored
    whole = augment.random_resized_crop(ramp, 16, generator(), area=(1.0, 1.0), ratio=(1.0, 1.0))
    torch.testing.assert_close(whole, ramp, rtol=0, atol=1e-5)
    assert augment.random_resized_crop((ramp * 255).byte(), 8, generator()).dtype == torch.float32


def test_normalize_undoes_the_moments():
    data = load_digits()
    mean, std = augment.channel_moments(data.train.pixels)
    values = normalize(data.train.pixels, mean, std)
    assert values.mean().abs() < 1e-4 and values.std().item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(normalize(data.train.pixels.float() / 255, mean, std), values)


@pytest.mark.parametrize("kind", ["plain", "crop", "crop-flip", "resized-crop-flip"])
def test_views_are_named_by_their_draw(kind):
    data = load_digits()
    arguments = ImageArguments(augmentation=kind, crop_padding=2)
    views = Views(arguments, facts_of(data, arguments), data)
    pixels = data.train.pixels[:16]
    once = views.train(pixels, "0:1")
    assert once.shape == (16, 1, 8, 8) and torch.equal(once, views.train(pixels, "0:1"))
    assert torch.equal(once, views.train(pixels, "0:2")) == (kind == "plain")
    assert torch.equal(views.evaluate(pixels), views.train(pixels, "")) == (kind == "plain")


def test_wrong_moments_are_one_sentence():
    data = load_digits()
    arguments = ImageArguments(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    with pytest.raises(UserError, match="image_mean has 3 numbers, the images 1 channels"):
        Views(arguments, facts_of(data, arguments), data)


@pytest.mark.parametrize("first, source", [([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], "fashion-mnist"), ([5, 0, 4, 1, 9], "idx")])
def test_fashion_is_known_by_its_content(tmp_path, first, source):
    folder = tmp_path / "fashionable"
    folder.mkdir()
    labels = np.array([*first, *range(10)], np.uint8)
    pixels = np.zeros((len(labels), 4, 4), np.uint8)
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    data = load_idx(folder)
    assert data.source == source and (data.classes[0] == "T-shirt/top") == (source == "fashion-mnist")


def put(folder, count, start=0, size=(12, 12)):
    """``count`` pictures of noise in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(start)
    for i in range(start, start + count):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"p{i}.png")


def loaded(folder, **keys):
    return load_images(ImageArguments(images=str(folder), **keys))


@pytest.mark.parametrize("names", [("airport", "beach", "train_interior", "train_station"), ("test", "train", "valid")])
def test_names_of_classes_mean_nothing(tmp_path, names):
    for name in names:
        put(tmp_path / name, 10)
        (tmp_path / name / "p0.png").rename(tmp_path / name / "train_0.png")
    data = loaded(tmp_path)
    assert data.classes == names and data.shape == (3, 12, 12)  # squares of one size need no image_size
    assert (len(data.train), len(data.validation)) == (9 * len(names), len(names))
    assert [row["labels"].item() for row in data.validation] == list(range(len(names)))
    paths = [path for part in (data.train, data.validation) for path, _ in part.files]
    assert len(set(paths)) == 10 * len(names)
    assert data.train.sha256() == loaded(tmp_path).train.sha256() != data.validation.sha256()


def test_damaged_images_are_named_and_left_out(tmp_path):
    for name in "ab":
        put(tmp_path / name, 10)
    (tmp_path / "a" / "p7.png").write_bytes(b"<html>404 Not Found</html>")
    whole = (tmp_path / "b" / "p3.png").read_bytes()
    (tmp_path / "b" / "p3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "notes.txt").write_text("no image")
    data = loaded(tmp_path)
    assert len(data.train) + len(data.validation) == 18
    assert "2 damaged images" in data.remarks[0] and "p7.png" in data.remarks[0] and "p3.png" in data.remarks[0]
    assert data.remarks[1].startswith("left out 1 files")
    with pytest.raises(UserError, match=r"more than max_bad_records = 1 damaged images, first .*p7\.png, .*p3\.png"):
        loaded(tmp_path, max_bad_records=1)
    path, _ = data.train.files[0]
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is damaged; repair or remove it"):
        data.train[0]


def test_few_images_and_classes_on_one_side(tmp_path):
    for name in "abc":
        put(tmp_path / "few" / name, 5)
        put(tmp_path / "split" / "train" / name, 3)
    few = loaded(tmp_path / "few")
    assert (len(few.train), len(few.validation)) == (12, 3)
    put(tmp_path / "few" / "d", 1)
    with pytest.raises(UserError, match=r"class 'd' of .* has 1 readable images and needs 2"):
        loaded(tmp_path / "few")
    put(tmp_path / "split" / "val" / "a", 2)
    split = loaded(tmp_path / "split")
    assert (len(split.train), len(split.validation), split.classes) == (9, 2, ("a", "b", "c"))
    put(tmp_path / "split" / "val" / "z", 2)
    with pytest.raises(UserError, match=r"has classes that .* has not: z"):
        loaded(tmp_path / "split")
    put(tmp_path / "odd" / "a", 3)
    put(tmp_path / "odd" / "b", 3, size=(10, 14))
    with pytest.raises(UserError, match="are no squares of one size; give image_size"):
        loaded(tmp_path / "odd")
    with pytest.raises(UserError, match="needs a sub-folder of images for each of at least two classes"):
        loaded(tmp_path / "odd" / "a")
    with pytest.raises(UserError, match="do not exist; give a folder"):
        loaded(tmp_path / "nothing")


class Hub:
    """A data set of the Hub whose head is ``head``; None is no network. It holds other pictures at every commit."""

    head: str | None = "a" * 40
    stored: str | None = None  # the only commit in the cache

    def dataset_info(self, name, *, revision, timeout):
        if self.head is None:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=self.head)

    def load(self, name, config, *, revision, cache_dir):
        self.asked = revision
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        rows = {
            "image": [Image.new("RGB", (12, 12), (ord(revision[0]), i, 0)) for i in range(20)],
            "label": [0, 1] * 10,
        }
        where = Path(cache_dir) / "owner___set" / "default" / "0.0.0" / (self.stored or revision)
        if not where.exists():
            datasets.Dataset.from_dict(rows, features=features).save_to_disk(where)
        return datasets.DatasetDict(train=datasets.load_from_disk(where))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """``hub``, asked anew by every task."""
    found = Hub()
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_commit, "HfApi", lambda: found)
    monkeypatch.setattr(datasets, "load_dataset", found.load)
    hub_commit.resolve_commit.cache_clear()
    yield found
    hub_commit.resolve_commit.cache_clear()


def task(recorded=None):
    hub_commit.resolve_commit.cache_clear()
    made = ImageTask(
        SimpleNamespace(
            data=ImageArguments(images="owner/set", image_size=8), run=SimpleNamespace(per_device_train_batch_size=8)
        )
    )
    assert made.facts.classes == 2  # the plan looks at the images before the checkpoint is known
    made.recorded = recorded
    return made


def test_images_of_the_hub_count_by_their_commit(hub):
    first = task().description
    assert first["commit"] == first["fingerprints"]["commit"] == hub.asked == "a" * 40
    hub.head = None
    assert task().description == first and hub.asked == "a" * 40  # offline the recorded one
    hub.head = "b" * 40
    moved = task()
    assert moved.description["commit"] == "b" * 40
    assert moved.description["fingerprints"]["images"] != first["fingerprints"]["images"]
    # A run that was begun with the first goes on with it.
    again = task(first["fingerprints"])
    assert again.description == first and again.data.train[0]["pixel_values"][0, 0, 0] == ord("a")
    # One of an earlier version knows no commit, and goes on as it was.
    parts = {"train": moved.data.train, "validation": moved.data.validation}
    earlier = {"images": digest({name: part.rows._fingerprint for name, part in parts.items()})}
    assert task(earlier).description["fingerprints"] == earlier != moved.description["fingerprints"]


def test_images_of_another_commit_out_of_the_cache_are_refused(hub):
    assert task().data.commit == "a" * 40
    hub.head, hub.stored = None, "b" * 40
    with pytest.raises(UserError, match=r"is wanted at commit a{40}, and without a network only b{40} is here"):
        task()


@pytest.mark.parametrize(("labels", "said"), [([-1] * 10, "split 'test' of .* without a label"), ([0, 1] * 5, None)])
def test_a_split_without_labels_is_refused(monkeypatch, labels, said):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    picture = Image.new("RGB", (12, 12))

    def part(labels):
        return datasets.Dataset.from_dict({"image": [picture] * len(labels), "label": labels}, features=features)

    splits = datasets.DatasetDict(train=part([0, 1] * 10), test=part(labels), few=part([0] * 3 + [1]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    keys = {"image_size": 8, "validation_split": "test"}
    if said is None:
        assert len(loaded("someone/set", **keys).validation) == 10
    else:
        with pytest.raises(UserError, match=said):
            loaded("someone/set", **keys)
    with pytest.raises(UserError, match="cannot hold out a tenth"):
        loaded("someone/set", image_size=8, train_split="few")
