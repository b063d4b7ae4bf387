# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a run: the number of its training, whatever the batches and processes."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ..training.forked import launch
from .conftest import Place


def measure(command: Callable, run: Path, *words: str) -> dict:
    code, out, err = command("eval", run, "--tasks", "perplexity", *words)
    assert code == 0 and "bits per byte" in out, err
    return json.loads((run / "eval" / "perplexity.json").read_text())


def test_equals_training_s_own_validation_at_every_batch_size(command: Callable, trained: Path) -> None:
    expected = json.loads((trained / "eval" / "validation.json").read_text())
    for size in ("1", "3", "8"):
        found = measure(command, trained, "--batch_size", size)
        assert found["loss"] == pytest.approx(expected["loss"], rel=2e-6), size
        assert found["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=2e-6)
        assert (found["tokens"], found["blocks"], found["sha256"]) == tuple(
            expected[key] for key in ("tokens", "blocks", "sha256")
        )
    assert found["blocks"] % 8 and found["blocks"] % 3  # the last batch is a smaller one
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_two_processes_give_the_number_of_one(command: Callable, place: Place, trained: Path) -> None:
    alone = measure(command, trained)
    program = Path(__file__).with_name("several.py")
    done = launch(2, program, trained, "--tasks", "perplexity", "--batch_size", "3", **place.environment)
    assert done.returncode == 0, done.stderr[-2000:]
    together = json.loads((trained / "eval" / "perplexity.json").read_text())
    assert together["processes"] == 2 and together["tokens"] == alone["tokens"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=2e-6)
    assert done.stdout.count("bits per byte") == 1


def test_a_checkpoint_of_the_run_is_measured_on_the_same_blocks(command: Callable, trained: Path) -> None:
    code, _, err = command("eval", trained / "checkpoint-4", "--tasks", "perplexity")
    assert code == 0, err
    found = json.loads((trained / "eval" / "checkpoint-4" / "perplexity.json").read_text())
    assert found["loss"] == pytest.approx(measure(command, trained)["loss"], rel=2e-6)


def test_a_run_of_an_adapter_gives_the_number_of_the_merged_model(
    command: Callable, trained: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    norms = ["input_layernorm", "post_attention_layernorm", "norm"]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(trained / "model")
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, modules_to_save=norms))
    for run in ("adapter", "merged"):
        shutil.copytree(trained, tmp_path / run)
        (tmp_path / run / "model" / "manifest.json").unlink()  # it is made another model
    for weights in (tmp_path / "adapter" / "model").glob("*.safetensors"):
        weights.unlink()
    (tmp_path / "adapter" / "model" / "config.json").unlink()
    model.save_pretrained(tmp_path / "adapter" / "model")
    model.merge_and_unload().save_pretrained(tmp_path / "merged" / "model")
    found, expected = (measure(command, tmp_path / run) for run in ("adapter", "merged"))
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-6)
    assert abs(found["loss"] - measure(command, trained)["loss"]) > 1e-3


def test_a_part_of_the_blocks_is_said_to_be_one(command: Callable, trained: Path) -> None:
    code, out, _ = command("eval", trained, "--tasks", "perplexity", "--limit", "2", "--output_path", trained / "part")
    found = json.loads((trained / "part" / "perplexity.json").read_text())
    assert code == 0 and found["tokens"] == 2 * 31 and f"2 of {found['all_blocks']} blocks" in out


def test_blocks_that_moved_or_changed(command: Callable, refused: Callable, trained: Path, tmp_path: Path) -> None:
    name = json.loads((trained / "data.json").read_text())["fingerprints"]["blocks"]
    blocks = Path(os.environ["IBNORM_CACHE"]) / "blocks" / name
    moved = shutil.copytree(blocks, tmp_path / "moved")
    ask = ("eval", trained, "--tasks", "perplexity", "--output_path", tmp_path / "out", "--blocks")
    assert command(*ask, moved)[0] == 0
    (shard,) = moved.glob("validation-*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert "are not those of" in refused(*ask, moved)
    shard.unlink()
    assert "are missing; set IBNORM_CACHE or --blocks" in refused(*ask, moved)


def test_a_model_without_a_run_gets_one_line(
    refused: Callable, models: Callable, trained: Path, tmp_path: Path
) -> None:
    assert "needs the validation blocks of a run" in refused("eval", models("llama"), "--tasks", "perplexity")
    assert "--batch_size 0 is no whole number" in refused("eval", trained, "--tasks", "perplexity", "--batch_size", "0")
    assert "--limt does not concern perplexity" in refused("eval", trained, "--tasks", "perplexity", "--limt", "3")
    copy = shutil.copytree(trained, tmp_path / "copy")
    (copy / "data.json").write_text("{}")
    assert "does not describe validation blocks" in refused("eval", copy, "--tasks", "perplexity")


def test_a_flipped_bit_in_the_weights_is_refused_and_not_measured(
    command: Callable, trained: Path, tmp_path: Path
) -> None:
    """It would load without a word, and print 8.60 for 5.35."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    weights = run / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0x40  # of an exponent
    weights.write_bytes(content)
    code, out, err = command("eval", run, "--tasks", "perplexity")
    assert code == 1 and "model.safetensors does not match its checksum" in err and "perplexity" not in out


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    file = tmp_path / "own text.txt"
    file.write_text((Path(__file__).parents[2] / "LICENSE").read_text()[:3000])
    return file


def by_hand(folder: Path, text: str, size: int) -> tuple[list[float], list[int]]:
    """Nats and predicted tokens of each block, one block at a time."""
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    nats, counts = [], []
    for start in range(0, len(ids), size):
        row = torch.tensor(ids[start : start + size])[None]
        if row.shape[1] > 1:
            with torch.no_grad():
                scores = model(row).logits.log_softmax(-1)[0, :-1]
            nats.append(-scores[torch.arange(row.shape[1] - 1), row[0, 1:]].double().sum().item())
            counts.append(row.shape[1] - 1)
    return nats, counts


@pytest.mark.parametrize("kind", ["llama", "ibnorm_gpt2"])
def test_any_causal_model_on_any_text(command: Callable, models: Callable, prose: Path, tmp_path: Path, kind: str):
    ask = ("--tasks", "perplexity", "--text", prose, "--block_size", "31", "--batch_size", "7")
    code, out, err = command("eval", models(kind), *ask, "--output_path", tmp_path)
    assert code == 0 and "loss on own text.txt" in out and " +- " in out, err
    found = json.loads((tmp_path / "perplexity-own_text.json").read_text())
    nats, counts = by_hand(models(kind), prose.read_text(), 31)
    assert found["block_tokens"] == counts and found["block_nats"] == pytest.approx(nats, rel=1e-5)
    assert counts[-1] < 30  # the last block is filled up, and what fills it counts nothing
    assert found["loss"] == pytest.approx(sum(nats) / sum(counts), rel=1e-6)


def test_the_standard_error_is_that_of_the_blocks(command: Callable, trained: Path):
    """Against resampling the blocks, which knows nothing of the formula."""
    found = measure(command, trained)
    nats, counts = torch.tensor(found["block_nats"]).double(), torch.tensor(found["block_tokens"]).double()
    picks = torch.randint(len(nats), (20_000, len(nats)), generator=torch.Generator().manual_seed(0))
    spread = (nats[picks].sum(1) / counts[picks].sum(1)).std().item()
    assert found["standard_error"] == pytest.approx(spread, rel=0.05)


def test_the_function_gives_what_it_writes(models: Callable, prose: Path, tmp_path: Path):
    from ibnorm_hf import evaluate_perplexity

    found = evaluate_perplexity(models("llama"), text=prose, output=tmp_path, block_size=16)
    assert found is not None and json.loads((tmp_path / "perplexity-own_text.json").read_text()) == found


def test_two_models_are_compared_block_by_block(command: Callable, models: Callable, prose: Path, tmp_path: Path):
    ask = ("--tasks", "perplexity", "--text", prose, "--block_size", "16")
    assert command("eval", models("ibnorm_llama"), *ask, "--output_path", tmp_path / "a")[0] == 0
    first = tmp_path / "a" / "perplexity-own_text.json"
    code, out, err = command("eval", models("llama"), *ask, "--output_path", tmp_path / "b", "--against", first)
    assert code == 0 and "nats a token, below 0 is better" in out, err
    one, two = (json.loads((tmp_path / x / "perplexity-own_text.json").read_text()) for x in "ab")
    pairs = [mine - theirs for mine, theirs in zip(two["block_nats"], one["block_nats"], strict=True)]
    found = two["against"]
    assert found["difference"] == pytest.approx(two["loss"] - one["loss"], abs=1e-9)
    assert found["better_blocks"] == sum(d < 0 for d in pairs)
    alone = math.hypot(one["standard_error"], two["standard_error"])
    assert 0 < found["standard_error"] < alone  # what the two share of a block's difficulty is gone


def test_other_blocks_are_not_compared(command: Callable, refused: Callable, models: Callable, prose, tmp_path: Path):
    ask = ("eval", models("llama"), "--tasks", "perplexity", "--text", prose, "--output_path", tmp_path)
    assert command(*ask, "--block_size", "16")[0] == 0
    result = tmp_path / "perplexity-own_text.json"
    assert "measured on other blocks" in refused(*ask, "--block_size", "17", "--against", result)
    (tmp_path / "none.json").write_text('{"sha256": "a"}')
    assert "keeps no loss a block" in refused(*ask, "--against", tmp_path / "none.json")
    assert "is missing" in refused(*ask, "--against", tmp_path / "nowhere.json")


def test_a_text_that_cannot_be_measured_is_one_line(refused: Callable, models: Callable, prose: Path, tmp_path: Path):
    ask = ("eval", models("llama"), "--tasks", "perplexity", "--text")
    assert "is missing" in refused(*ask, tmp_path / "nowhere.txt")
    (tmp_path / "short.txt").write_text("a")
    assert "too short to predict" in refused(*ask, tmp_path / "short.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\x01")
    assert "is unreadable" in refused(*ask, tmp_path / "bytes.txt")
    assert "--block_size 100000: a block has at least 2 tokens" in refused(*ask, prose, "--block_size", "100000")
    assert "add --tasks perplexity" in refused("eval", models("llama"), "--tasks", "arc_easy", "--text", prose)
