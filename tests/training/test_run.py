# SPDX-License-Identifier: Apache-2.0
"""Whole runs: the folder, the validation, exact resume, checkpoints that are damaged, losses that diverge."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_pt_utils import safe_globals

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training import job
from ibnorm_hf.training.folder.manifest import checkpoints, keep_last, newest_complete, seal, verify
from ibnorm_hf.training.loop.callbacks import trim_log
from ibnorm_hf.training.loop.trainer import PretrainTrainer


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_s", None)
        for key in ("data_wait", "seconds", "core_seconds"):
            line.pop(key, None)
    return lines


def kill_at(monkeypatch, micro_step: int) -> None:
    """Make the run die inside the given micro-batch, counted from 1 in this process."""
    real, calls = PretrainTrainer.training_step, []

    def step(self, *words):
        calls.append(1)
        if len(calls) == micro_step:
            raise Killed
        return real(self, *words)

    monkeypatch.setattr(PretrainTrainer, "training_step", step)


def same_state(one: Path, two: Path) -> None:
    """Weights, optimizer moments, schedule and generators of two checkpoints are equal bit for bit."""
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (torch.load(p / "optimizer.pt", weights_only=True) for p in (one, two))
    assert a["param_groups"] == b["param_groups"]
    for index, state in a["state"].items():
        assert all(torch.equal(value, b["state"][index][name]) for name, value in state.items())
    for name in ("scheduler.pt", "rng_state.pth"):
        assert (one / name).stat().st_size == (two / name).stat().st_size
    a, b = (torch.load(p / "scheduler.pt", weights_only=True) for p in (one, two))
    assert a == b
    with safe_globals():
        a, b = (torch.load(p / "rng_state.pth", weights_only=True)["cpu"] for p in (one, two))
    assert torch.equal(a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One finished run of six steps, made once."""
    from ibnorm_hf.training.keys.recipe import load_recipe

    from .conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    job.pretrain(load_recipe(folder / "tiny.yaml", ["--output_dir", str(folder / "run")]))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage, where `make_recipe` expects it."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def test_the_run_folder_is_complete(finished: Path):
    run = finished / "run"
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "data.json",
        "environment.json",
        "eval/validation.json",
        "eval/sample.txt",
        "model/model.safetensors",
        "model/config.json",
        "model/generation_config.json",
        "model/tokenizer.json",
        "checkpoint-6/manifest.json",
    }
    assert len({(run / n).stat().st_mode & 0o777 for n in names if n.startswith(("model/", "checkpoint-6/"))}) == 1
    assert not any(name.endswith("training_args.bin") or name.startswith(".") for name in names)
    lines = metrics(run)
    assert [line["step"] for line in lines if "loss" in line] == [3, 6]
    assert lines[0].keys() >= {"loss", "lr", "grad_norm", "tokens", "samples_sha256", "share_over_lambda"}
    assert lines[0]["tokens"] == 3 * 4 * 32
    assert len(lines[0]["share_over_lambda"]) == 5
    assert lines[-2]["loss"] < lines[0]["loss"] < math.log(300) + 0.5


def test_the_final_model_reproduces_the_validation(finished: Path):
    run = finished / "run"
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert len(tokenizer) <= model.config.vocab_size and model.config.eos_token_id == tokenizer.eos_token_id
    facts = json.loads((run / "eval" / "validation.json").read_text())
    data = json.loads((run / "data.json").read_text())
    assert facts["sha256"] == data["validation"]["sha256"]
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert facts["bits_per_byte"] == pytest.approx(facts["loss"] / math.log(2) / data["validation"]["bytes_per_token"])
    from ibnorm_hf.training.keys.recipe import load_recipe

    blocks = job.prepare(load_recipe(run / "config.yaml")).validation[:]["input_ids"]
    ids = torch.from_numpy(blocks.astype("int64"))
    with torch.no_grad():
        # Equal lengths: the mean over tokens is the model's own loss on all blocks at once.
        assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(facts["loss"], rel=1e-5)


def test_validation_does_not_depend_on_the_batch_size_nor_move_generators(make_recipe):
    recipe = make_recipe()
    task = job.task_of(recipe)
    data, trainer = task.data, task.trainer()
    blocks = data.validation.select(range(5))
    state = torch.get_rng_state()
    losses = []
    for size in (1, 3, 8):
        trainer.args.per_device_eval_batch_size = size
        trainer.model.train()
        losses.append((trainer.scores(blocks)["loss"], trainer.scores(blocks)["tokens"]))
        assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert {tokens for _, tokens in losses} == {5 * 31}
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6) == pytest.approx(losses[2][0], rel=1e-6)


@pytest.mark.parametrize("count, world", [(7, 1), (7, 2), (8, 2), (4, 3), (1, 3)])
def test_every_process_runs_equally_often_and_every_sample_counts_once(count, world):
    counted, lengths = dict.fromkeys(range(count), 0.0), set()
    for rank in range(world):
        args = SimpleNamespace(process_index=rank, world_size=world, per_device_eval_batch_size=2, device="cpu")
        batches = list(PretrainTrainer.validation_batches(SimpleNamespace(args=args), count))
        lengths.add(tuple(len(indices) for indices, _ in batches))
        for indices, weights in batches:
            for index, weight in zip(indices, weights.tolist(), strict=True):
                counted[index] += weight
    assert set(counted.values()) == {1.0} and len(lengths) == 1


def test_validation_is_in_eval_mode(make_recipe):
    recipe = make_recipe("--norm_type", "normalnorm")  # noisy in training mode
    task = job.task_of(recipe)
    data, trainer = task.data, task.trainer()
    blocks = data.validation.select(range(3))
    assert trainer.scores(blocks) == trainer.scores(blocks)


def test_a_finished_run_trains_nothing_more(run: Path, make_recipe, monkeypatch):
    before, log = load_file(run / "model" / "model.safetensors"), metrics(run)
    validation = json.loads((run / "eval" / "validation.json").read_text())
    shutil.rmtree(run / "model")  # as if killed right after the last checkpoint
    kill_at(monkeypatch, 1)
    result = job.pretrain(make_recipe())
    after = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics(run) == log
    assert result.validation["loss"] == pytest.approx(validation["loss"], rel=1e-6)


@pytest.mark.faults
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(["--norm_type", "ibnorm-l", "--save_steps", 4], id="accumulation-epochs-odd-saves"),
        pytest.param(["--norm_type", "normalnorm", "--save_steps", 3], id="noise"),
    ],
)
def test_two_kills_change_nothing(make_recipe, tmp_path: Path, monkeypatch, keys):
    # 20 blocks and 4 a step: the samples start over after every fifth step.
    keys = [*keys, "--max_steps", 12, "--global_batch_size", 4, "--per_device_train_batch_size", 2]
    keys += ["--token_budget", 640, "--save_total_limit", 9]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    job.pretrain(make_recipe(*keys, "--output_dir", whole))
    for micro_step in (13, 9):
        with monkeypatch.context() as patch:
            kill_at(patch, micro_step)
            with pytest.raises(Killed):
                job.pretrain(make_recipe(*keys, "--output_dir", killed))
    torch.manual_seed(12345)  # a new process begins with other generators
    job.pretrain(make_recipe(*keys, "--output_dir", killed))
    assert metrics(killed) == metrics(whole)
    assert [step for step, _ in checkpoints(killed)] == [step for step, _ in checkpoints(whole)]
    for (_, one), (_, two) in zip(checkpoints(whole), checkpoints(killed), strict=True):
        same_state(one, two)


def test_micro_batches_are_the_same_steps(make_recipe, tmp_path: Path):
    losses = []
    for micro in (4, 1):
        folder = tmp_path / f"micro-{micro}"
        job.pretrain(
            make_recipe("--global_batch_size", 4, "--per_device_train_batch_size", micro, "--output_dir", folder)
        )
        lines = metrics(folder)
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---- damaged and foreign checkpoints -----------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped": (lambda f: flip(f / "model.safetensors"), r"model\.safetensors does not match its checksum"),
    "truncated": (lambda f: (f / "optimizer.pt").write_bytes(b"PK"), r"optimizer\.pt has 2 bytes instead of"),
    "missing": (lambda f: (f / "scheduler.pt").unlink(), r"scheduler\.pt is missing"),
    "foreign": (lambda f: (f / "training_args.bin").write_bytes(b"x"), r"training_args\.bin is not in manifest"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "it has no manifest.json"),
    "half manifest": (lambda f: (f / "manifest.json").write_text('{"files": {'), "manifest.json is unreadable"),
    "list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is not what it should be"),
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(run: Path, kind: str):
    damage, said = DAMAGE[kind]
    damage(run / "checkpoint-6")
    with pytest.raises(UserError, match=said):
        verify(run / "checkpoint-6")
    heard: list[str] = []
    found = newest_complete(run, heard.append)
    assert found is not None and found[0].name == "checkpoint-3" and found[1]["step"] == 3
    assert len(heard) == 1 and heard[0].startswith("resume: passing over checkpoint-6:")


def test_a_manifest_cannot_point_outside(tmp_path: Path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "a").write_text("a")
    seal(folder, {})
    content = json.loads((folder / "manifest.json").read_text())
    for name in ("../secret", "/etc/passwd"):
        (folder / "manifest.json").write_text(json.dumps({**content, "files": {name: {"bytes": 1, "sha256": ""}}}))
        with pytest.raises(UserError, match="outside its folder"):
            verify(folder)


def test_falling_back_ends_in_the_same_weights(run: Path, make_recipe, capsys):
    before = load_file(run / "model" / "model.safetensors")
    flip(run / "checkpoint-6" / "optimizer.pt")
    shutil.rmtree(run / "model")  # with it, the run would be finished
    job.pretrain(make_recipe())
    assert "passing over checkpoint-6" in capsys.readouterr().out
    after = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    verify(run / "checkpoint-6")


def test_resume_by_path(run: Path, make_recipe, tmp_path: Path):
    with pytest.raises(UserError, match="does not exist; give auto, never or"):
        job.pretrain(make_recipe("--resume", tmp_path / "nothing"))
    flip(run / "checkpoint-3" / "model.safetensors")
    with pytest.raises(UserError, match="does not match its checksum"):
        job.pretrain(make_recipe("--resume", run / "checkpoint-3"))


def test_keep_last_counts_sealed_checkpoints_only(run: Path):
    (run / "checkpoint-9").mkdir()  # unfinished
    keep_last(run, 1)
    assert [step for step, _ in checkpoints(run)] == [6, 9]


def test_a_folder_with_another_run_is_refused(run: Path, make_recipe):
    with pytest.raises(UserError, match=r"holds another run \(learning_rate is 0.01 there and 0.5 here\)"):
        job.pretrain(make_recipe("--learning_rate", 0.5))
    with pytest.raises(UserError, match="norm_type is None there and dyt here"):
        job.pretrain(make_recipe("--norm_type", "dyt"))
    with pytest.raises(UserError, match="already holds this run"):
        job.pretrain(make_recipe("--resume", "never"))


def test_a_run_that_never_began_may_be_corrected(make_recipe, tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        job.pretrain(make_recipe("--corpus", tmp_path / "misspelt.txt"))
    job.pretrain(make_recipe("--max_steps", 1))
    assert checkpoints(tmp_path / "run")[-1][0] == 1


def test_bf16_and_tensorboard_on_cpu(make_recipe, tmp_path: Path):
    result = job.pretrain(make_recipe("--bf16", "--report_to", "tensorboard", "--max_steps", 3))
    assert math.isfinite(result.validation["loss"])
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_a_foreign_folder_or_checkpoint_is_refused(run: Path, make_recipe, tmp_path: Path):
    with pytest.raises(UserError, match="belongs to another recipe"):
        job.pretrain(make_recipe("--seed", 7, "--output_dir", tmp_path / "new", "--resume", run / "checkpoint-6"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and no run of this program"):
        job.pretrain(make_recipe("--output_dir", tmp_path / "full"))


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(make_recipe, tmp_path: Path, monkeypatch):
    real = PretrainTrainer.compute_loss

    def compute(self, *words, **keys):
        loss = real(self, *words, **keys)
        return loss * float("nan") if self.state.global_step == 4 else loss

    monkeypatch.setattr(PretrainTrainer, "compute_loss", compute)
    with pytest.raises(
        UserError, match=r"loss became nan or infinite at step 5 \(blocks \d+, \d+, \d+, \d+\)"
    ) as caught:
        job.pretrain(make_recipe())
    assert caught.value.exit_code == 1
    found = newest_complete(tmp_path / "run")
    assert found is not None and found[1]["step"] == 3


def test_an_infinite_gradient_never_reaches_the_weights(make_recipe, tmp_path: Path, monkeypatch):
    real = PretrainTrainer.training_step

    def step(self, model, *words):
        loss = real(self, model, *words)
        if self.state.global_step == 3:
            next(model.parameters()).grad.view(-1)[0] = float("inf")
        return loss

    monkeypatch.setattr(PretrainTrainer, "training_step", step)
    with pytest.raises(UserError, match="gradient became nan or infinite at step 4"):
        job.pretrain(make_recipe())
    weights = load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_vanilla_model_types_are_baselines(make_recipe, tmp_path: Path):
    result = job.pretrain(make_recipe("--model_type", "llama", "--max_steps", 3))
    assert result.validation["loss"] < math.log(300) + 0.5
    assert "share_over_lambda" not in metrics(tmp_path / "run")[0]


def test_trimming_a_log_drops_later_and_half_lines(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    trim_log(path, 1)
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n'


def test_a_checkpoint_of_the_first_identity_is_resumed(make_recipe, tmp_path: Path, capsys):
    """config.yaml and manifests then named only the keys that somebody had given, and logging_steps decided."""
    folder = tmp_path / "run"
    job.pretrain(make_recipe())
    whole = (folder / "metrics.jsonl").read_text()
    older = json.loads((Path(__file__).parent / "runs_of_identity_1.json").read_text())["text"]
    corpus = make_recipe().data.corpus
    for gone in ("checkpoint-6", "model", "eval"):
        shutil.rmtree(folder / gone)
    (folder / "config.yaml").write_text(json.dumps({**older["config"], "corpus": corpus}))
    path = folder / "checkpoint-3" / "manifest.json"
    facts = {key: value for key, value in json.loads(path.read_text()).items() if key != "files"}
    recipe = {**older["manifest"]["recipe"], "corpus": corpus}
    assert "identity_version" not in recipe and "optim" not in recipe
    path.unlink()
    seal(folder / "checkpoint-3", {**facts, "run_id": older["manifest"]["run_id"], "recipe": recipe})
    capsys.readouterr()
    job.pretrain(make_recipe("--logging_steps", 3, "--save_total_limit", 5))
    assert "resume: checkpoint-3" in capsys.readouterr().out
    losses = [
        [line["loss"] for line in map(json.loads, text.splitlines()) if "loss" in line]
        for text in (whole, (folder / "metrics.jsonl").read_text())
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    with pytest.raises(UserError, match="holds another run"):
        job.pretrain(make_recipe("--optim", "adafactor"))


@pytest.mark.parametrize("limit", [1, 2])
def test_going_back_deletes_neither_what_was_resumed_from_nor_what_is_written(make_recipe, tmp_path, limit):
    keys = ["--max_steps", 9, "--save_total_limit", 9, "--eval_strategy", "no"]
    job.pretrain(make_recipe(*keys))
    run, written = tmp_path / "run", []
    real = PretrainTrainer._save_checkpoint

    def save(self, *words):
        real(self, *words)
        written.append((self.state.global_step, [step for step, _ in checkpoints(run)]))

    keys[3] = limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainTrainer, "_save_checkpoint", save)
        job.pretrain(make_recipe(*keys, "--save_steps", 1, "--resume", run / "checkpoint-6"))
    assert [step for step, _ in written] == [7, 8, 9]
    for step, there in written:
        assert step in there and 6 in there
    kept = [step for step, _ in checkpoints(run)]
    assert kept == ([6, 9] if limit == 1 else [6, 8, 9])
    for _, path in checkpoints(run):
        verify(path)
