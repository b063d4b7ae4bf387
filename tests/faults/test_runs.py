# SPDX-License-Identifier: Apache-2.0
"""What recipes, corpora and checkpoints do to a run: spikes, changed inputs, foreign and hostile files."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training import job
from ibnorm_hf.training.folder.manifest import MANIFEST, newest_complete, seal, verify
from ibnorm_hf.training.loop.callbacks import GradientGuard
from ibnorm_hf.training.loop.order import SampleOrder
from ibnorm_hf.training.loop.trainer import PretrainTrainer
from ibnorm_hf.training.text.tokenizer import train_bpe

from .compare import log_lines, unlike

ROOT = Path(__file__).parents[2]
LICENSE = ROOT / "LICENSE"


def spike_at(monkeypatch, step: int, factor: float) -> None:
    """Multiply the gradients of one step, as a damaged batch or a failing device would."""
    real = PretrainTrainer.training_step

    def training_step(self, model, *words):
        loss = real(self, model, *words)
        if self.state.global_step == step - 1:
            for parameter in model.parameters():
                parameter.grad.mul_(factor)
        return loss

    monkeypatch.setattr(PretrainTrainer, "training_step", training_step)


@pytest.mark.faults("a gradient spike")
def test_a_spike_stops_the_run_before_the_weights(make_recipe, tmp_path, monkeypatch):
    keys = ["--max_steps", 24, "--save_steps", 18, "--eval_strategy", "no"]
    with monkeypatch.context() as patch:
        spike_at(patch, 20, 1e5)
        said = (
            r"the gradient spiked at step 20 \(blocks \d+, \d+, \d+, \d+\): its norm \S+ is more than grad_spike_factor"
        )
        with pytest.raises(UserError, match=said) as caught:
            job.pretrain(make_recipe(*keys))
        assert caught.value.exit_code == 1
        found = newest_complete(tmp_path / "run")
        assert found is not None and found[1]["step"] == 18
        # The usual size of a gradient is part of the checkpoint: a resumed run judges alike.
        with pytest.raises(UserError, match=said):
            job.pretrain(make_recipe(*keys))
    # The rule decides where a run stops, not what it computes: the same run goes on without it.
    job.pretrain(make_recipe(*keys, "--grad_spike_factor", "null"))
    job.pretrain(make_recipe(*keys, "--output_dir", tmp_path / "whole"))
    assert unlike(tmp_path / "whole", tmp_path / "run") == []


def test_the_rule_for_spikes():
    order = SampleOrder(10, seed=0, steps=100, batch=2)
    guard = GradientGuard(order, 10.0)
    guard.check(1000.0, 1)  # the first steps are no measure
    for step in range(2, 40):
        guard.check(1.0 + step % 3, step)
    guard.check(19.0, 40)
    with pytest.raises(UserError, match="spiked at step 41"):
        guard.check(21.0, 41)
    with pytest.raises(UserError, match="gradient became nan or infinite at step 41"):
        guard.check(float("nan"), 41)
    GradientGuard(order, None).check(1e30, 1)


@pytest.mark.faults("a nan loss")
def test_nan_ends_the_program_with_1(recipe_file, tmp_path, monkeypatch, capsys):
    real = PretrainTrainer.compute_loss

    def compute(self, *words, **keys):
        loss = real(self, *words, **keys)
        return loss * float("nan") if self.state.global_step == 4 else loss

    monkeypatch.setattr(PretrainTrainer, "compute_loss", compute)
    assert main(["pretrain", str(recipe_file), "--output_dir", str(tmp_path / "run")]) == 1
    assert "error: the loss became nan or infinite at step 5 (blocks " in capsys.readouterr().err
    verify(tmp_path / "run" / "checkpoint-3")


@pytest.mark.faults("a budget of tokens beyond the corpus")
def test_epochs_are_said_aloud(make_recipe, tmp_path, capsys):
    job.pretrain(make_recipe("--max_steps", 3, "--global_batch_size", 160, "--per_device_train_batch_size", 80))
    assert "480 samples from 209 blocks = 2.30 epochs: every block is seen up to 3 times" in capsys.readouterr().out


def write_corpus(path: Path, good: int, bad: list[bytes]) -> Path:
    lines = [json.dumps({"text": f"Document {i} tells of {i * i} things and ends."}).encode() for i in range(good)]
    path.write_bytes(b"\n".join(lines + bad) + b"\n")
    return path


BAD = {
    "malformed JSON": b'{"text": "half',
    "empty": b'{"text": "  "}',
    "not UTF-8": b'{"text": "\xff\xfe"}',
    "binary": b'{"text": "a\\u0000b"}',
    "lone surrogate": b'{"text": "\\ud800"}',
    "line over 16 MiB": b'{"text": "' + b"x" * (17 << 20) + b'"}',
}


@pytest.mark.faults("a corpus with unreadable records")
@pytest.mark.parametrize("kind", BAD)
def test_bad_records_are_counted_named_and_left_out(make_recipe, tmp_path, capsys, kind):
    good = 10_000 if "MiB" in kind else 400  # held-out pieces are longer in a larger file
    path = write_corpus(tmp_path / "docs.jsonl", good, [BAD[kind]])
    data = job.prepare(make_recipe("--corpus", path))
    assert data.description["bad_records"] == {
        "count": 1,
        "by_reason": {kind: 1},
        "first": [f"{path}:{good + 1} ({kind})"],
    }
    assert f"skipped 1 unreadable records, first {path}:{good + 1} ({kind})" in capsys.readouterr().out
    with pytest.raises(UserError, match="more than max_bad_records = 2 unreadable records"):
        job.prepare(make_recipe("--corpus", write_corpus(path, 400, [b"{"] * 3), "--max_bad_records", 2))


@pytest.mark.faults("a corpus without text")
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0\0\0\n", b"\xfd\xff\xfe\n"])
def test_a_corpus_without_text_is_one_sentence(recipe_file, tmp_path, capsys, content):
    (tmp_path / "c.txt").write_bytes(content)
    command = ["pretrain", str(recipe_file), "--corpus", str(tmp_path / "c.txt"), "--output_dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert "holds no text" in capsys.readouterr().err


# ---- foreign checkpoints -----------------------------------------------------------------------------------


FOREIGN = {
    "another norm": (["--norm_type", "rmsnorm"], r"norm_type is None there and rmsnorm here"),
    "another width": (["--model.hidden_size", "64"], r"model.hidden_size is 32 there and 64 here"),
    "another seed": (["--seed", "7"], r"seed is 42 there and 7 here"),
}


@pytest.mark.faults("a checkpoint of another run")
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_checkpoint_is_named(finished, make_recipe, tmp_path, kind):
    keys, said = FOREIGN[kind]
    with pytest.raises(UserError, match=rf"checkpoint-6 belongs to another recipe \({said}\)"):
        job.pretrain(make_recipe(*keys, "--output_dir", tmp_path / "new", "--resume", finished / "checkpoint-6"))


@pytest.mark.faults("a corpus or tokenizer changed under a run")
@pytest.mark.parametrize("what", ["tokenizer", "corpus"])
def test_changed_inputs_are_not_trained_on(make_recipe, tmp_path, what):
    texts = LICENSE.read_text().splitlines()
    train_bpe(iter(texts), 300).save_pretrained(tmp_path / "tok")
    write_corpus(tmp_path / "docs.jsonl", 400, [])
    keys = ["--corpus", tmp_path / "docs.jsonl", "--tokenizer", tmp_path / "tok"]
    job.pretrain(make_recipe(*keys))
    if what == "tokenizer":
        train_bpe(iter(texts[:100]), 300).save_pretrained(tmp_path / "tok")
    else:
        write_corpus(tmp_path / "docs.jsonl", 500, [])
    with pytest.raises(UserError, match=rf"checkpoint-6 was trained with another {what} than the recipe names now"):
        job.pretrain(make_recipe(*keys))


@pytest.mark.faults("a packed shard with a flipped bit")
def test_a_flipped_bit_in_packed_text_is_found(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    data = job.prepare(make_recipe())
    shard = data.folder / data.description["train"]["shards"][0]["file"]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for command in (job.prepare, job.pretrain):
        with pytest.raises(UserError, match=r"train-00000\.arrow does not match its checksum"):
            command(make_recipe())


# ---- hostile files -----------------------------------------------------------------------------------------


class Payload:
    """What a pickle runs when it is loaded by a careless program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def reseal(checkpoint: Path) -> None:
    """Give a changed checkpoint a valid manifest, as an attacker would."""
    facts = json.loads((checkpoint / MANIFEST).read_text())
    facts.pop("files")
    seal(checkpoint, facts)


def test_the_payload_works(tmp_path):
    torch.save(Payload(tmp_path / "ran"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.faults("pickled code in a checkpoint")
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_pickled_code_is_refused(run, make_recipe, tmp_path, name):
    shutil.rmtree(run / "checkpoint-6")
    torch.save(Payload(tmp_path / "ran"), run / "checkpoint-3" / name)
    reseal(run / "checkpoint-3")
    with pytest.raises(UserError, match=r"checkpoint .*checkpoint-3 cannot be loaded into this run") as caught:
        job.pretrain(make_recipe())
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.faults("pickled code in a checkpoint")
@pytest.mark.parametrize("name", ["training_args.bin", "scaler.pt", "pytorch_model_fsdp.bin", "random_states_0.pkl"])
def test_pickles_that_nobody_asked_for_are_not_read(finished, run, make_recipe, tmp_path, name):
    shutil.rmtree(run / "checkpoint-6")
    torch.save(Payload(tmp_path / "ran"), run / "checkpoint-3" / name)
    reseal(run / "checkpoint-3")
    job.pretrain(make_recipe())
    assert not (tmp_path / "ran").exists()
    assert log_lines(run) == log_lines(finished)


@pytest.mark.faults("pickled code in a checkpoint")
def test_pickled_weights_are_refused(run, make_recipe, tmp_path):
    weights = run / "checkpoint-6" / "model.safetensors"
    torch.save(load_file(weights), run / "checkpoint-6" / "pytorch_model.bin")
    weights.unlink()
    reseal(run / "checkpoint-6")
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        job.pretrain(make_recipe())


@pytest.mark.faults("a sealed checkpoint with wrong contents")
@pytest.mark.parametrize("change", ["shape", "missing tensor", "extra tensor", "state", "own state", "step"])
def test_a_sealed_checkpoint_with_wrong_contents(run, make_recipe, change):
    shutil.rmtree(run / "checkpoint-6")
    checkpoint = run / "checkpoint-3"
    weights = load_file(checkpoint / "model.safetensors")
    name = sorted(weights)[0]
    if change == "shape":
        weights[name] = torch.zeros(3)
    elif change == "missing tensor":
        del weights[name]
    elif change == "extra tensor":
        weights["surplus"] = torch.zeros(3)
    save_file(weights, checkpoint / "model.safetensors")
    if change == "state":
        (checkpoint / "trainer_state.json").write_text('{"global_step": "three"')
    elif change == "own state":
        (checkpoint / "ibnorm_state.json").write_text('{"losses": 7}')
    reseal(checkpoint)
    if change == "step":
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        (checkpoint / MANIFEST).write_text(json.dumps({**manifest, "step": "3"}))
    with pytest.raises(UserError, match=r"checkpoint .*checkpoint-3 (cannot be loaded|is damaged)") as caught:
        job.pretrain(make_recipe())
    assert "\n" not in str(caught.value)


@pytest.mark.faults("names that leave their folder")
def test_links_and_names_stay_in_their_folder(run, tmp_path):
    checkpoint = run / "checkpoint-3"
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("x")
    (checkpoint / "link").symlink_to(secret)  # a folder: the file in it is none itself
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for name in ("link/key", "../../secret/key", str(secret / "key"), "a\0b", "x" * 5000):
        files = {**manifest["files"], name: {"bytes": 1, "sha256": ""}}
        (checkpoint / MANIFEST).write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(UserError, match=r"outside its folder|is a link"):
            verify(checkpoint)


@pytest.mark.faults("names that leave their folder")
def test_shards_stay_in_the_cache(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("IBNORM_CACHE", str(tmp_path / "cache"))
    data = job.prepare(make_recipe())
    shard = data.description["train"]["shards"][0]
    outside = tmp_path / shard["file"]
    shutil.move(data.folder / shard["file"], outside)
    shard["file"] = os.path.relpath(outside, data.folder)
    (data.folder / "data.json").write_text(json.dumps(data.description))
    with pytest.raises(UserError, match=r"train-00000\.arrow is missing or damaged"):
        job.prepare(make_recipe())


@pytest.mark.faults("code that comes with a tokenizer")
def test_a_tokenizers_own_code_is_not_run(make_recipe, tmp_path):
    folder = tmp_path / "tok"
    train_bpe(iter(LICENSE.read_text().splitlines()), 300).save_pretrained(folder)
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        job.prepare(make_recipe("--tokenizer", folder))
    except UserError as error:
        assert "cannot be loaded" in str(error)
    assert not (tmp_path / "ran").exists()
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()  # it would have run


@pytest.mark.faults("secrets around a run")
def test_secrets_stay_out_of_every_file(recipe_file, tmp_path, monkeypatch, capfd):
    secrets = {
        "HF_TOKEN": "hf_" + "aBcDeFgHiJ" * 3,
        "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
        "AWS_SECRET_ACCESS_KEY": "sEcReT/" + "x" * 30,
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    command = ["pretrain", str(recipe_file), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    for value in secrets.values():
        assert main([*command, "--run_name", f"mine {value}"]) == 2
        refused = "".join(capfd.readouterr())
        assert "key run_name" in refused and "access token" in refused and value not in refused
        assert not (tmp_path / "run").exists()
    command += ["--run_name", "mine"]
    # The command line of a launcher around this program may hold what this program would refuse.
    words = ["ibnorm-hf", *command, "--note", secrets["AWS_SECRET_ACCESS_KEY"], "--api_key", secrets["WANDB_API_KEY"]]
    monkeypatch.setattr(sys, "argv", words)
    assert main(command) == 0
    assert "run_name: mine" in (tmp_path / "run" / "config.yaml").read_text()
    said = "".join(capfd.readouterr())
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert "<hidden>" in (tmp_path / "run" / "environment.json").read_text()
    for value in secrets.values():
        assert value not in said
        assert not [p for p in files if value.encode() in p.read_bytes()]
    assert main([*command, "--hub_token", secrets["HF_TOKEN"]]) == 2
    said = "".join(capfd.readouterr())
    assert "secrets do not belong" in said and secrets["HF_TOKEN"] not in said
