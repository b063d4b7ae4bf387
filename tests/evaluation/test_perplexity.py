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
    command_line = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29541")
    words = ("-m", "ibnorm_hf.cli", "eval", str(trained), "--tasks", "perplexity", "--batch_size", "3")
    done = place.run(*command_line, *words)
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
