# SPDX-License-Identifier: Apache-2.0
"""The image processor beside a model's weights: training, evaluation and pipeline see the very same pixels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from ibnorm_hf import IBNormImageProcessor
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.evaluation.classification import predict
from ibnorm_hf.hub.card import write_card
from ibnorm_hf.hub.convert import convert
from ibnorm_hf.hub.export import export
from ibnorm_hf.hub.push import push
from ibnorm_hf.training import job
from ibnorm_hf.training.keys.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = ["--max_steps", "2", "--global_batch_size", "16", "--per_device_train_batch_size", "16", "--warmup_steps", "0"]
SHORT += ["--eval_steps", "2", "--logging_steps", "1"]


def pictures(folder):
    """Two classes of pictures in colour, of several sizes, one of which was taken with the camera on its side."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i, (width, height) in enumerate([(23, 17), (12, 31), (14, 14), (40, 9)] * 2):
            image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
            exif = Image.Exif()
            exif[0x0112] = 6 if i % 4 == 0 else 1  # orientation
            image.save(folder / name / f"{i}.png", exif=exif)
    return folder


@pytest.fixture(scope="module", params=["vit-gray", "resnet-gray", "vit-colour", "resnet-colour"])
def run(request, tmp_path_factory):
    """A finished run, with what it was trained on: the digits, or pictures that are resized and cut twice."""
    kind, colour = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    keys = ["--output_dir", str(folder / "run")]
    if colour == "colour":
        keys += ["--images", str(pictures(folder / "pictures")), "--image_size", "8", "--stored_size", "11"]
        keys += ["--image_mean", "0.41", "0.5", "0.37", "--image_std", "0.21", "0.3", "0.19"]
    return job.pretrain(load_recipe(RECIPES / kind / "tiny.yaml", [*SHORT, *keys]))


def shown(data, index):
    """The picture that a row of the validation data was made from, as a user has it."""
    if hasattr(data, "files"):
        return data.files[index][0]
    return Image.fromarray(data.pixels[index, 0].numpy())


def test_training_evaluation_and_pipeline_agree_to_the_bit(run):
    task, model, data = run.task, run.folder / "model", run.task.data.validation
    processor = AutoImageProcessor.from_pretrained(model)
    assert type(processor) is IBNormImageProcessor
    chosen = data.select(range(3)) if hasattr(data, "select") else [data[i] for i in range(2)]
    loaded = AutoModelForImageClassification.from_pretrained(model).eval()
    evaluated, _ = predict(loaded, chosen, task.views.evaluate, batch_size=1)
    classify = pipeline("image-classification", model=str(model))
    for index in range(len(chosen)):
        picture = shown(data, index)
        pixels = processor(str(picture) if isinstance(picture, Path) else picture, return_tensors="pt")["pixel_values"]
        row = data[index]["pixel_values"][None]
        trained = task.trainer().objective.evaluate({"pixel_values": row})["pixel_values"]
        assert pixels.dtype == torch.float32 and torch.equal(pixels, trained)
        answer = classify(str(picture) if isinstance(picture, Path) else picture, function_to_apply="none", top_k=99)
        scores = {entry["label"]: entry["score"] for entry in answer}
        wanted = {loaded.config.id2label[i]: value for i, value in enumerate(evaluated[index].tolist())}
        assert scores == wanted


@pytest.mark.parametrize("run", ["vit-gray", "resnet-colour"], indirect=True)
def test_every_checkpoint_and_the_export_carry_it(run, tmp_path):
    model = run.folder / "model"
    settings = json.loads((model / "preprocessor_config.json").read_text())
    assert json.loads((run.folder / "checkpoint-2" / "preprocessor_config.json").read_text()) == settings
    assert settings["image_processor_type"] == "IBNormImageProcessor" and "auto_map" not in settings
    assert settings["image_mean"] == json.loads((run.folder / "data.json").read_text())["mean"]
    pushed = push(run.folder, "someone/pictures", dry_run=True, say=lambda line: None)
    assert {"preprocessor_config.json", "image_processing_ibnorm.py"} <= set(pushed.files)
    card = write_card(run.folder, target=tmp_path / "card").read_text()
    assert 'AutoImageProcessor.from_pretrained("run")' in card and "training images" in card
    for words in (
        f"{settings['num_channels']} channel", *(f"{v:.4f}" for v in settings["image_mean"] + settings["image_std"]),
        f"covers {settings['size']['width']} x {settings['size']['height']} pixels", "the same pixels to the bit",
    ):  # fmt: skip
        assert words in card, words
    folder = export(run.folder, tmp_path / "export")
    again = AutoImageProcessor.from_pretrained(folder)
    row = run.task.data.validation[0]["pixel_values"]
    assert torch.equal(again(row, return_tensors="pt")["pixel_values"], run.task.views.evaluate(row[None]))


def test_a_picture_of_any_kind(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    processor = IBNormImageProcessor(size={"height": 9, "width": 9}, crop_size={"height": 5, "width": 7})
    wanted = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert wanted.shape == (1, 3, 5, 7)
    assert wanted[0, 0, 0, 0].item() == pytest.approx(pixels[2, 1, 0] / 127.5 - 1, abs=1e-6)
    for same in (pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels), torch.from_numpy(pixels[None]), [pixels]):
        assert torch.equal(processor(same, return_tensors="pt")["pixel_values"], wanted)
    two = processor([Image.fromarray(pixels), Image.new("L", (30, 10))], return_tensors="np")["pixel_values"]
    assert two.shape == (2, 3, 5, 7) and two.dtype == np.float32 and np.array_equal(two[:1], wanted.numpy())
    turned, exif = Image.fromarray(np.rot90(pixels).copy()), Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: to be turned by a quarter, clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    for upright in (str(tmp_path / "turned.png"), Image.open(tmp_path / "turned.png")):
        assert torch.equal(processor(upright, return_tensors="pt")["pixel_values"], wanted)
    gray = IBNormImageProcessor(num_channels=1, size={"height": 4, "width": 4})
    flat = np.full((8, 8), 51, np.uint8)
    for picture in (flat, flat[None], Image.fromarray(flat), Image.fromarray(flat).convert("RGB")):
        values = gray(picture, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(values, torch.full((1, 1, 4, 4), 51 / 127.5 - 1))
    for wrong in (pixels.astype(np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(TypeError, match="an image"):
            processor(wrong)
    with pytest.raises(TypeError, match="takes no do_normalize, size"):
        processor(pixels, do_normalize=False, size=3)


@pytest.mark.parametrize("run", ["vit-gray"], indirect=True)
def test_another_default_dtype_changes_no_pixel(run):
    row = run.task.data.validation[0]["pixel_values"][None]
    wanted = run.task.views.evaluate(row)
    torch.set_default_dtype(torch.float64)
    try:
        again = job.task_of(run.task.recipe)
        found = again.views.evaluate(row)
        assert again.views.train(row, "0").dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


@pytest.mark.parametrize("run", ["vit-gray"], indirect=True)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_std": [0.0]}, "it must be above 0"),
        ({"image_mean": "half"}, "not a list of numbers"),
        ({"size": {"height": 4}}, "in pixels"),
        ({"size": {"height": 4, "width": 4}, "crop_size": {"height": 8, "width": 8}}, "is larger than size"),
        ({"num_channels": 2}, "not 1 or 3"),
        (None, "is unreadable"),
    ],
)
def test_a_damaged_processor_is_one_sentence(run, tmp_path, change, said):
    model = shutil.copytree(run.folder / "model", tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))
    path = model / "preprocessor_config.json"
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said) as caught:
        export(model, tmp_path / "export")
    assert str(path) in str(caught.value) and not (tmp_path / "export").exists()


@pytest.fixture
def foreign(tmp_path):
    """A checkpoint of somebody else's, with the image processor of its own that it was trained behind."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path / "foreign"
    ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    settings |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2, "rescale_factor": 1 / 255}
    settings |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_foreign_checkpoint_keeps_its_own_processor(foreign, tmp_path):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (9, 13, 3), dtype=np.uint8))
    wanted = AutoImageProcessor.from_pretrained(foreign)(picture, return_tensors="pt")["pixel_values"]
    convert(str(foreign), tmp_path / "converted", norm_type="ibnorm-l")
    for folder in (
        tmp_path / "converted",
        export(foreign, tmp_path / "a"),
        export(tmp_path / "converted", tmp_path / "b"),
    ):
        processor = AutoImageProcessor.from_pretrained(folder)
        assert type(processor).__name__.startswith("ViTImageProcessor")
        assert torch.equal(processor(picture, return_tensors="pt")["pixel_values"], wanted)
        assert not list(folder.glob("image_processing*.py"))
        assert len(pipeline("image-classification", model=str(folder))(picture)) == 2
    assert "that of the model it was made from" in (tmp_path / "converted" / "README.md").read_text()


def test_code_and_links_in_place_of_a_processor_are_refused(foreign, tmp_path):
    path = foreign / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    uses = [
        lambda: export(foreign, tmp_path / "out"),
        lambda: convert(str(foreign), tmp_path / "out", norm_type="ibnorm-l"),
    ]
    own = {"image_processor_type": "Trap", "auto_map": {"AutoImageProcessor": "trap.Trap"}}
    (foreign / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    path.write_text(json.dumps(settings | own))
    for use in uses:
        with pytest.raises(UserError, match="code of its own, which is never run"):
            use()
        assert not (tmp_path / "out").exists()
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    for use in uses:
        with pytest.raises(UserError, match="is a link"):
            use()
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
