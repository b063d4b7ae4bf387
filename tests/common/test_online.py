# SPDX-License-Identifier: Apache-2.0
"""What is not here is asked of the Hub at once or not at all, and said in a whole sentence."""

import socket
import threading
import time

import datasets.config
import pytest
from huggingface_hub import constants

from ibnorm_hf.common import online
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.hub.push import require_access
from ibnorm_hf.pretrained import load_config
from ibnorm_hf.training import job
from ibnorm_hf.training.keys.recipe import load_recipe
from tests.training.conftest import TINY


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """A Hub that is a port which nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(online, "_answers", {})
        yield


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)

    def make(*words):
        return load_recipe(tmp_path / "tiny.yaml", [*words, "--output_dir", str(tmp_path / "run")])

    return make


NAMES = {
    "corpus": lambda recipe: job.pretrain(recipe("--corpus", "nosuchcorpus")),
    "tokenizer": lambda recipe: job.pretrain(recipe("--tokenizer", "nobody/nothing")),
    "pretrained": lambda recipe: load_config("nobody/nothing"),
    "images": lambda recipe: (
        job.task_of(recipe("--images", "nobody/pictures", "--image_size", "8", "--model_type", "ibnorm_vit")).data
    ),
}


@pytest.mark.parametrize("way", ["no answer", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("key", NAMES)
def test_what_is_nowhere_is_said_at_once_and_whole(recipe, monkeypatch, key, way):
    if way == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if key == "images":
        recipe = _images(recipe)
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)  # between attempts
    with pytest.raises(UserError) as caught:
        NAMES[key](recipe)
    said = str(caught.value)
    assert "it is not here, and " in said and ("HF_HUB_OFFLINE forbids" in said) == (way == "HF_HUB_OFFLINE")
    assert way == "HF_HUB_OFFLINE" or f"the Hub ({constants.ENDPOINT}) does not answer" in said
    assert "\n" not in said and sum(waited) == 0


def _images(recipe):
    def make(*words):
        made = recipe()
        path = made.run.output_dir.replace("/run", "/images.yaml")
        with open(path, "w") as handle:
            handle.write("max_steps: 1\nmodel: {hidden_size: 8}\nimages: digits\nuse_cpu: true\n")
        return load_recipe(path, list(words))

    return make


def test_a_hub_that_never_answers_costs_its_patience_and_is_asked_once(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and says nothing
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(online, "PATIENCE", 0.3)
        started = threading.active_count()
        assert not online.hub_answers() and not online.hub_answers()
        assert len(online._answers) == 1 and threading.active_count() <= started + 1


def test_the_libraries_are_offline_inside_the_block_alone():
    with online.hub_or_cache():
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_run_that_is_to_be_published_is_refused_where_the_hub_does_not_answer(monkeypatch):
    monkeypatch.setattr("ibnorm_hf.hub.push.get_token", lambda: "hf_" + "x" * 20)
    with pytest.raises(UserError, match="does not answer, so me/model cannot be published when the run is done"):
        require_access("me/model")


def test_a_long_reason_ends_with_a_whole_word(monkeypatch):
    monkeypatch.setattr(online, "hub_answers", lambda: True)
    text = online.reason("could not connect to https://huggingface.co/some/long/address " * 9)
    assert len(text) <= 200 and text.endswith(("to ...", "connect ...", "not ...", "could ...", "address ..."))


def test_local_paths_are_looked_for_beside_the_recipe_and_then_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text(
        TINY[: TINY.index("corpus:")] + "corpus: text.txt\nmax_steps: 1\nper_device_train_batch_size: 1\n"
    )
    monkeypatch.chdir(tmp_path)

    def corpus(*words):
        return load_recipe("recipes/r.yaml", list(words)).data.corpus

    assert corpus() == "text.txt"
    (tmp_path / "text.txt").write_text("of the folder")
    assert corpus() == "text.txt"
    (tmp_path / "recipes" / "text.txt").write_text("beside the recipe")
    assert corpus() == "recipes/text.txt" and corpus("--corpus", "text.txt") == "text.txt"
    (tmp_path / "recipes" / "gpt2").mkdir()  # of recipes: no model
    (tmp_path / "recipes" / "r.yaml").write_text((tmp_path / "recipes" / "r.yaml").read_text() + "tokenizer: gpt2\n")
    assert load_recipe("recipes/r.yaml").data.tokenizer == "gpt2"
    (tmp_path / "recipes" / "gpt2" / "tokenizer.json").write_text("{}")
    assert load_recipe("recipes/r.yaml").data.tokenizer == "recipes/gpt2"
