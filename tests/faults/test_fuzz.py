# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in a file that people or programs hand over: it is read, or refused in one sentence, and soon."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.evaluation.leaderboard import leaderboard
from ibnorm_hf.training.folder.failures import loading
from ibnorm_hf.training.folder.manifest import MANIFEST, newest_complete, verify
from ibnorm_hf.training.folder.resume import require_same_recipe
from ibnorm_hf.training.folder.run_folder import claim
from ibnorm_hf.training.keys.arguments import DataArguments
from ibnorm_hf.training.keys.reading import known_keys
from ibnorm_hf.training.keys.recipe import load_recipe
from ibnorm_hf.training.loop.callbacks import trim_log
from ibnorm_hf.training.loop.sharded import load_full_model
from ibnorm_hf.training.plan import make_plan
from ibnorm_hf.training.text import prepare as preparing
from ibnorm_hf.training.text.sources.registry import open_source
from tests.training.conftest import TINY

pytestmark = pytest.mark.faults("arbitrary content in a file")


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Settings of one target; an example that takes ten seconds is a hang."""
    return settings(
        max_examples=examples,
        deadline=timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def refused_in_a_sentence(job: Callable[[], Any]) -> None:
    """The job succeeds, or raises a UserError of one line."""
    try:
        job()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(
    scalars | st.sampled_from([10**9, 10**30, -1, 0, float("nan"), float("inf"), "\0", "../x", "null"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
json_texts = trees.map(lambda tree: json.dumps(tree).encode()) | st.binary(max_size=200)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """A valid file with some bytes replaced, cut off or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 12))
        data[at : at + length] = draw(st.binary(max_size=12))
    return bytes(data)


@st.composite
def altered(draw: Any, tree: Any) -> Any:
    """A valid JSON-like value in which one place holds something else."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(tree)))
        return {**tree, key: draw(altered(tree[key]))}
    if isinstance(tree, list) and tree and draw(st.integers(0, 5)):
        index = draw(st.integers(0, len(tree) - 1))
        return [*tree[:index], draw(altered(tree[index])), *tree[index + 1 :]]
    return draw(trees)


# ---- recipes -----------------------------------------------------------------------------------------------

recipe_files = (
    st.binary(max_size=120)
    | st.text(max_size=120).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | damaged(TINY.encode())
    | trees.map(lambda tree: yaml.safe_dump(tree).encode("utf-8", "surrogatepass"))
    | altered(yaml.safe_load(TINY)).map(lambda tree: yaml.safe_dump(tree).encode("utf-8", "surrogatepass"))
)


@fuzz(80)
@given(recipe_files)
def test_recipe_files(tmp_path: Path, content: bytes):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(content)
    refused_in_a_sentence(lambda: make_plan(load_recipe(path)))


@fuzz(60)
@given(st.sampled_from(sorted(known_keys(DataArguments))), trees)
def test_recipe_values(tmp_path: Path, key: str, value: Any):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(yaml.safe_dump({**yaml.safe_load(TINY), key: value}).encode("utf-8", "surrogatepass"))
    refused_in_a_sentence(lambda: make_plan(load_recipe(path)))


@fuzz(60)
@given(st.sampled_from([*sorted(yaml.safe_load(TINY)["model"]), "rope_parameters", "layer_types", "dtype"]), trees)
def test_recipe_sizes(tmp_path: Path, key: str, value: Any):
    path = tmp_path / "fuzz.yaml"
    content = yaml.safe_load(TINY)
    content["model"][key] = value
    path.write_bytes(yaml.safe_dump(content).encode("utf-8", "surrogatepass"))
    refused_in_a_sentence(lambda: make_plan(load_recipe(path)))


def test_sizes_that_would_never_be_built(tmp_path: Path):
    path = tmp_path / "fuzz.yaml"
    for name in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"):
        path.write_text(TINY)
        with pytest.raises(UserError, match=name):
            make_plan(load_recipe(path, [f"--model.{name}", "1000000000000"]))


def test_a_bomb_of_aliases(tmp_path: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join([*lines, "corpus: *a11"]))
    with pytest.raises(UserError, match=r"aliases \(\*name\) are not supported"):
        load_recipe(path)
    path.write_text("corpus: " + "[" * 5000)
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(path)


# ---- manifests and what lies beside them -------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, cache) -> Any:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "tiny.yaml").write_text(TINY)
    return load_recipe(folder / "tiny.yaml", ["--output_dir", str(folder / "run")])


VALID = {
    "version": 1,
    "step": 3,
    "run_id": "x",
    "recipe": {"seed": 1},
    "files": {"a": {"bytes": 1, "sha256": "0" * 64}},
}


@fuzz(200)
@given(json_texts | damaged(json.dumps(VALID).encode()) | altered(VALID).map(lambda tree: json.dumps(tree).encode()))
def test_manifests(tmp_path: Path, recipe, content: bytes):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir(exist_ok=True)
    (folder / "a").write_text("a")
    (folder / MANIFEST).write_bytes(content)
    refused_in_a_sentence(lambda: verify(folder))
    said: list[str] = []
    found = newest_complete(tmp_path, said.append)
    assert found is not None or len(said) == 1


@fuzz(100)
@given(altered(VALID))
def test_what_manifests_say(recipe, manifest: Any):
    if isinstance(manifest, dict):
        refused_in_a_sentence(lambda: require_same_recipe(recipe, Path("checkpoint-3"), manifest))


@fuzz(60)
@given(json_texts)
def test_configurations_of_run_folders(tmp_path: Path, recipe, content: bytes):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    recipe.run.output_dir = str(tmp_path / "run")

    def enter() -> None:
        with claim(recipe):
            pass

    refused_in_a_sentence(enter)


@fuzz(100)
@given(st.lists(json_texts, max_size=4).map(b"\n".join))
def test_logs_that_were_damaged(tmp_path: Path, content: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    trim_log(path, 3)
    for text in path.read_text(encoding="utf-8").splitlines():
        assert json.loads(text)["step"] <= 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("prepared")
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Document {i} tells of {i * i} things."}) + "\n" for i in range(300)))
    data = DataArguments(corpus=str(text), block_size=16, validation_fraction=0.1, tokenizer_vocab_size=300)
    return preparing.prepare_data(data, vocab_size=300, run_tokens=1000, say=lambda line: None)


@fuzz(60)
@given(st.data())
def test_descriptions_of_prepared_text(prepared, data):
    path = prepared.folder / "data.json"
    whole = json.dumps(prepared.description)
    path.write_text(json.dumps(data.draw(altered(prepared.description))))
    try:
        refused_in_a_sentence(lambda: preparing._load(prepared.folder, prepared.tokenizer, True))
    finally:
        path.write_text(whole)


# ---- weights -----------------------------------------------------------------------------------------------

WEIGHTS = save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})


@fuzz(300)
@given(damaged(WEIGHTS) | damaged(WEIGHTS[:120]).map(lambda head: head + WEIGHTS[120:]) | st.binary(max_size=64))
def test_headers_of_weights(tmp_path: Path, content: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    model = torch.nn.Linear(3, 2)

    def load() -> None:
        with loading(tmp_path):
            load_full_model(model, path)

    refused_in_a_sentence(load)
    assert {tuple(p.shape) for p in model.parameters()} == {(2, 3), (2,)}


@fuzz(50)
@given(altered(json.loads(WEIGHTS[8 : 8 + int.from_bytes(WEIGHTS[:8], "little")])))
def test_other_headers_of_weights(tmp_path: Path, header: Any):
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + WEIGHTS[-64:])

    def load() -> None:
        with loading(tmp_path):
            load_full_model(torch.nn.Linear(3, 2), tmp_path / "model.safetensors")

    refused_in_a_sentence(load)


# ---- corpora and results -----------------------------------------------------------------------------------


@fuzz(150)
@given(
    st.sampled_from(["c.txt", "c.jsonl", "c.parquet", "c.jsonl.gz", "c.txt.xz"]),
    st.binary(max_size=200) | st.lists(json_texts, max_size=4).map(b"\n".join),
)
def test_corpora(tmp_path: Path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)

    def read() -> None:
        for piece, _ in open_source(DataArguments(corpus=str(path))).pieces():
            piece.text.encode()

    refused_in_a_sentence(read)


RESULTS = {
    "results": {
        "leaderboard_ifeval": {"alias": "x", "prompt_level_strict_acc,none": 0.1, "inst_level_strict_acc,none": 0.2}
    },
    "configs": {},
    "n-samples": {"leaderboard_ifeval": {"original": 541, "effective": 541}},
    "model_name": "m",
}


@fuzz(150)
@given(
    json_texts | damaged(json.dumps(RESULTS).encode()) | altered(RESULTS).map(lambda tree: json.dumps(tree).encode())
)
def test_results_of_evaluations(tmp_path: Path, content: bytes):
    path = tmp_path / "results_x.json"
    path.write_bytes(content)
    refused_in_a_sentence(lambda: leaderboard([str(path)], style="json", partial=True, chart=None))


@pytest.mark.faults  # no fault itself, so not in the table
def test_the_judge_is_awake():
    def traceback() -> None:
        raise KeyError("step")

    with pytest.raises(KeyError):
        refused_in_a_sentence(traceback)
    with pytest.raises(AssertionError):
        refused_in_a_sentence(lambda: (_ for _ in ()).throw(UserError("two\nlines")))
