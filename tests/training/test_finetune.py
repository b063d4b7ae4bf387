# SPDX-License-Identifier: Apache-2.0
"""Training from pretrained weights: whole, with other norms, norms alone, adapters; exact resume of each."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.packed import IGNORED
from ibnorm_hf.evaluation.target import resolve
from ibnorm_hf.hub.card import write_card
from ibnorm_hf.hub.export import export
from ibnorm_hf.hub.push import push
from ibnorm_hf.modeling.norms import IBNorm
from ibnorm_hf.modeling.recognize import iter_norms
from ibnorm_hf.pretrained import load_pretrained
from ibnorm_hf.training import job
from ibnorm_hf.training.keys.arguments import ModelArguments
from ibnorm_hf.training.keys.recipe import Recipe, load_recipe, resolved
from ibnorm_hf.training.keys.schedule import LambdaSchedule
from ibnorm_hf.training.loop.anneal import measure_spreads, nats_per_token
from ibnorm_hf.training.model.build import build_config, build_trained_model, lambda_schedule
from ibnorm_hf.training.model.trained_part import take_trained_part
from ibnorm_hf.training.plan import make_plan
from tests.faults.compare import load, unlike

from .conftest import TINY
from .test_run import Killed, kill_at, metrics

SCHEDULE = {"start": "auto", "end": 0.5, "unit": "spread", "stages": 4, "warmup_share": 0.2, "anneal_share": 0.7}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Small trained checkpoints with non-default gains: vanilla LLaMA and GPT-2, and LLaMA converted to IBNorm."""
    made = {}
    for kind, sizes in (("llama", []), ("gpt2", ["--model", "null"])):
        folder = tmp_path_factory.mktemp(kind)
        text = TINY.replace("ibnorm_llama", kind)
        if sizes:
            text = text[: text.index("model:")] + text[text.index("corpus:") :]
            text += "model: {vocab_size: 300, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 64}\n"
        (folder / "tiny.yaml").write_text(text)
        result = job.pretrain(load_recipe(folder / "tiny.yaml", ["--output_dir", str(folder / "run")]))
        made[kind] = result.folder / "model"
    target = tmp_path_factory.mktemp("converted") / "base"
    assert main(["convert", str(made["llama"]), str(target), "--norm_type", "ibnorm-t", "--norm_lambda", "0.7"]) == 0
    made["ibnorm"] = target
    half = tmp_path_factory.mktemp("half") / "base"
    AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(target).save_pretrained(half)
    made["ibnorm in bf16"] = half
    return made


@pytest.fixture
def make(tmp_path: Path, bases):
    """``make(base, "--key", value, ...)``: twelve steps from a base, saved every four."""
    text = TINY[: TINY.index("model_type")] + TINY[TINY.index("corpus:") :]
    (tmp_path / "fine.yaml").write_text(text)

    def recipe(base: str, *words) -> Recipe:
        given = [str(word) for word in words]
        keys = ["--pretrained", str(bases[base]), "--max_steps", "12", "--save_steps", "4", "--save_total_limit", "9"]
        if "--output_dir" not in given:
            keys += ["--output_dir", str(tmp_path / "run")]
        return load_recipe(tmp_path / "fine.yaml", [*keys, *given])

    return recipe


def first_validation(run: Path) -> float:
    return next(line["eval_loss"] for line in metrics(run) if "eval_loss" in line and line["step"] == 0)


def test_norms_that_stay_and_norms_that_mean_the_same_start_where_the_base_ended(make, bases, tmp_path):
    ended = load(bases["llama"].parent / "eval" / "validation.json")["loss"]
    for name, flags in (("kept", []), ("same", ["--norm_type", "rmsnorm"])):
        run = tmp_path / name
        job.pretrain(make("llama", *flags, "--eval_on_start", "true", "--max_steps", 1, "--output_dir", run))
        assert first_validation(run) == ended
    assert AutoConfig.from_pretrained(tmp_path / "kept" / "model").model_type == "llama"
    assert AutoConfig.from_pretrained(tmp_path / "same" / "model").norm_type == "rmsnorm"


def test_a_swap_is_the_conversion(make, bases, tmp_path):
    keys = ("--eval_on_start", "true", "--max_steps", 1)
    job.pretrain(make("llama", "--norm_type", "ibnorm-t", "--norm_lambda", 0.7, *keys, "--output_dir", tmp_path / "a"))
    job.pretrain(make("ibnorm", *keys, "--output_dir", tmp_path / "b"))
    ended = load(bases["llama"].parent / "eval" / "validation.json")["loss"]
    assert first_validation(tmp_path / "a") == first_validation(tmp_path / "b") != ended


def test_vanilla_gpt2_is_trained_on_the_same_loss_as_ours(make, bases, tmp_path):
    job.pretrain(make("gpt2", "--max_steps", 3, "--output_dir", tmp_path / "vanilla"))
    job.pretrain(make("gpt2", "--max_steps", 3, "--norm_type", "layernorm", "--output_dir", tmp_path / "ours"))
    vanilla, ours = (next(line for line in metrics(tmp_path / x) if "loss" in line) for x in ("vanilla", "ours"))
    assert vanilla["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert vanilla["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)


MODES = [
    pytest.param("llama", [], id="whole"),
    pytest.param("llama", ["--norm_type", "ibnorm-l", "--norm_lambda_schedule", json.dumps(SCHEDULE)], id="annealed"),
    pytest.param("gpt2", ["--norm_type", "ibnorm-s", "--train_only", "norms"], id="norms-frozen"),
    pytest.param("ibnorm", ["--adapter", "norms"], id="norms-adapter"),
    pytest.param("ibnorm", ["--adapter", "lora", "--lora_r", 2, "--lora_dropout", 0.1], id="lora"),
    pytest.param("gpt2", ["--adapter", "lora", "--lora_r", 2, "--lora_norms", "false"], id="lora-gpt2"),
]


@pytest.mark.faults
@pytest.mark.parametrize("base, keys", MODES)
def test_a_killed_run_ends_as_an_uninterrupted_one(make, tmp_path, monkeypatch, base, keys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    job.pretrain(make(base, *keys, "--output_dir", whole))
    for micro_step in (6, 6):  # in step 6, and in step 10 of the run that went on from step 4
        with monkeypatch.context() as patch:
            kill_at(patch, micro_step)
            with pytest.raises(Killed):
                job.pretrain(make(base, *keys, "--output_dir", killed))
    torch.manual_seed(12345)  # a new process begins with other generators
    job.pretrain(make(base, *keys, "--output_dir", killed))
    assert unlike(whole, killed) == []
    before = load(whole / "eval" / "validation.json")
    again = job.pretrain(make(base, *keys, "--output_dir", killed))  # nothing left to train
    assert again.validation["loss"] == pytest.approx(before["loss"], rel=1e-6)


def test_lambda_falls_by_the_schedule_and_checkpoints_say_so(make, tmp_path):
    schedule = {"start": 100, "end": 1, "shape": "log", "stages": 3, "warmup_share": 0.25, "anneal_share": 0.75}
    keys = ["--norm_type", "ibnorm-l", "--norm_lambda_schedule", json.dumps(schedule), "--logging_steps", 1]
    job.pretrain(make("llama", *keys))
    logged = [line["norm_lambda"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert logged == pytest.approx([100] * 5 + [10] * 3 + [1] * 4)
    for step, value in ((4, 100.0), (8, 10.0), (12, 1.0)):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.norm_lambda == pytest.approx(value)
        assert {m.norm_lambda for m in model.modules() if isinstance(m, IBNorm)} == {model.config.norm_lambda}
    assert "lambda: 100 through step 3, then log in 3 stages to 1 at step 9" in make_plan(make("llama", *keys)).lines


def test_shapes_meet_at_both_ends_and_fall_between():
    for shape, middle in (("log", 10.0), ("linear", 50.5), ("cosine", 10.0), ("decelerating", 10**0.5)):
        schedule = LambdaSchedule(start=100, end=1, shape=shape, stages=5)
        values = [schedule.between(100, 1, stage) for stage in range(5)]
        assert values[0] == 100 and values[-1] == 1 and values[2] == pytest.approx(middle)
        assert values == sorted(values, reverse=True) and len(set(values)) == 5
        assert [schedule.stage(step, 100) for step in (1, 5, 75, 100)] == [0, 0, 4, 4]


def test_spread_gives_every_norm_its_own_lambda_and_auto_keeps_its_bound(make, tmp_path, capsys):
    schedule = {**SCHEDULE, "max_loss": 0.01}
    job.pretrain(make("llama", "--norm_type", "ibnorm-l", "--norm_lambda_schedule", json.dumps(schedule)))
    said = capsys.readouterr().out
    manifest = load(tmp_path / "run" / "checkpoint-4" / "manifest.json")
    measured = manifest["norm_lambda"]["measured"]
    assert 0 < measured["loss_at_start"] - measured["loss_free"] <= 0.01
    assert f"lambda: start {measured['auto_start']:g}" in said
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert config.norm_lambda == pytest.approx([0.5 * spread for spread in measured["spreads"]])
    assert len(set(config.norm_lambda)) == len(config.norm_lambda) == 5


def test_a_compiled_model_is_compiled_at_most_once_a_stage(make, monkeypatch):
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: real(model, backend=count, fullgraph=True))
    schedule = {"start": 100, "end": 1, "stages": 5, "warmup_share": 0.0, "anneal_share": 1.0}
    flags = ["--norm_type", "ibnorm-l", "--norm_lambda_schedule", json.dumps(schedule), "--torch_compile", "true"]
    job.pretrain(make("llama", *flags, "--eval_strategy", "no", "--save_strategy", "no"))
    torch._dynamo.reset()
    # One more for the validation at the end, which is without labels.
    assert 2 <= len(compiled) <= 5 + 1


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_train_only_norms_moves_nothing_else_and_the_optimizer_holds_nothing_else(make, bases, tmp_path, base):
    flags = ["--norm_type", "ibnorm-l", "--norm_lambda", 1, "--train_only", "norms"]
    recipe = make(base, *flags)
    job.pretrain(recipe)
    before, after = load_file(bases[base] / "model.safetensors"), load_file(tmp_path / "run/model/model.safetensors")
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    norms = {name for name in after if "norm" in name or "ln_" in name}
    assert moved == norms
    state = torch.load(tmp_path / "run" / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"]
    moments = sum(values["exp_avg"].numel() for values in state.values())
    plan = make_plan(recipe)
    assert moments == sum(after[name].numel() for name in norms) == plan.trained < plan.parameters
    line = f"trained: {plan.trained:,} of {plan.parameters:,} parameters"
    assert any(text.startswith(line) for text in plan.lines)


def test_train_only_norms_from_random_weights(make_recipe, tmp_path):
    start = build_trained_model(recipe := make_recipe("--train_only", "norms"), build_config(recipe))
    assert {n for n, p in start.named_parameters() if p.requires_grad} == {
        n for n, _ in start.named_parameters() if "norm" in n
    }
    job.pretrain(recipe)
    after = load_file(tmp_path / "run/model/model.safetensors")
    assert any((after[name] != 1).any() for name in after if "norm" in name)


@pytest.mark.parametrize("keys", [["--adapter", "norms"], ["--adapter", "lora", "--lora_r", 2]], ids=["norms", "lora"])
@pytest.mark.parametrize("stored", ["ibnorm", "ibnorm in bf16"])
def test_an_adapter_run_saves_the_adapter_alone_and_loads_as_what_was_trained(make, bases, tmp_path, keys, stored):
    from peft import AutoPeftModelForCausalLM

    result = job.pretrain(make(stored, *keys))
    recipe = make(stored, *keys)
    trainer = job.task_of(recipe).trainer()
    trainer.load(tmp_path / "run" / "checkpoint-12")
    for folder in (tmp_path / "run" / "model", tmp_path / "run" / "checkpoint-12"):
        names = {path.name for path in folder.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} < names
        assert not names & {"model.safetensors", "training_args.bin", "README.md"}
        weights = load_file(folder / "adapter_model.safetensors")
        assert sum(w.numel() for w in weights.values()) == make_plan(recipe).trained
    ids = torch.arange(5, 45).view(2, 20)
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(bases[stored], dtype=torch.float32).eval()
    with torch.no_grad():
        trained = trainer.model.eval()(ids).logits
        assert torch.equal(reloaded(ids).logits, trained) and not torch.equal(base(ids).logits, trained)
        merged = AutoModelForCausalLM.from_pretrained(export(tmp_path / "run", tmp_path / "export")).eval()
        torch.testing.assert_close(merged(ids).logits, trained, rtol=1e-4, atol=1e-5)
    assert merged.config.norm_lambda == 0.7 and result.validation["step"] == 12
    # In the run's own precision, whatever the base is stored in.
    assert main(["eval", str(tmp_path / "run"), "--tasks", "perplexity"]) == 0
    measured = load(tmp_path / "run" / "eval" / "perplexity.json")
    assert measured["loss"] == pytest.approx(result.validation["loss"], rel=1e-6) and measured["dtype"] == "float32"


def test_an_adapter_is_under_two_percent_of_its_base():
    """LLaMA-60M, the smallest recipe of a real width, counted on the meta device."""
    from ibnorm_hf.training.model.build import build_config, build_model
    from ibnorm_hf.training.model.trained_part import take_trained_part, trained_counts

    for keys in (["--adapter", "norms"], ["--adapter", "lora"]):
        recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "llama" / "60m.yaml", [])
        recipe.model.adapter, recipe.model.pretrained = keys[1], "a-base"
        base = load_recipe(Path(__file__).parents[2] / "recipes" / "llama" / "60m.yaml", [])
        model = build_model(build_config(base), device="meta")
        whole = trained_counts(model)[1]
        assert 0 < trained_counts(take_trained_part(model, recipe.model))[0] < 0.02 * whole


def test_a_base_that_changed_is_refused(make, bases, tmp_path):
    keys = ["--adapter", "norms", "--output_dir", tmp_path / "run"]
    job.pretrain(make("ibnorm", *keys, "--save_steps", 12))
    path = bases["ibnorm"] / "model.safetensors"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-4] + b"\x00\x00\x80\x3f")
        with pytest.raises(UserError, match="have changed since"):
            job.pretrain(make("ibnorm", *keys, "--save_steps", 12))
        for use in (lambda: export(tmp_path / "run", tmp_path / "out"), lambda: resolve(str(tmp_path / "run"))):
            with pytest.raises(UserError, match=CHANGED):
                use()
        path.unlink()  # half deleted: its config is still there
        for use in (lambda: export(tmp_path / "run", tmp_path / "out"), lambda: resolve(str(tmp_path / "run"))):
            with pytest.raises(UserError, match=CHANGED):
                use()
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("keys", [[], ["--adapter", "lora"]], ids=["whole", "lora"])
def test_a_base_with_another_norm_is_refused(make, bases, tmp_path, capsys, keys):
    """Its config decides what its weights compute."""
    words = [*keys, "--output_dir", tmp_path / "run", "--save_steps", 12]
    job.pretrain(make("ibnorm", *words))
    path = bases["ibnorm"] / "config.json"
    content = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(content) | {"norm_type": "ibnorm-s", "norm_lambda": 0.01}))
        with pytest.raises(UserError, match=CHANGED):
            job.pretrain(make("ibnorm", *words))
        nobody_takes_it(tmp_path / "run", tmp_path / "out", capsys, whole=not keys)
    finally:
        path.write_text(content)
    job.pretrain(make("ibnorm", *words))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0


CHANGED = r"config or weights of .* have changed since; bring the old ones back"


def nobody_takes_it(run, out, capsys, whole):
    """Publishing names the base, so it refuses; evaluation of weights that are whole says it and goes on."""
    publishing = [
        lambda: export(run, out),
        lambda: push(run, "someone/model", dry_run=True, say=lambda line: None),
        lambda: write_card(run, target=None if whole else run.parent / "merged"),
    ]
    for use in [*publishing, *([] if whole else [lambda: resolve(str(run)), lambda: resolve(str(run / "model"))])]:
        with pytest.raises(UserError, match=CHANGED) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not out.exists()
    capsys.readouterr()
    assert main(["eval", str(run), "--tasks", "perplexity"]) == (0 if whole else 2)
    said = capsys.readouterr()
    assert re.search(CHANGED, said.err) and said.err.count("\n") == 1
    if whole:
        found = load(run / "eval" / "perplexity.json")["loss"]
        assert found == pytest.approx(load(run / "eval" / "validation.json")["loss"], rel=1e-6)


@pytest.mark.parametrize("keys", [["--adapter", "lora"], ["--adapter", "norms"], []], ids=["lora", "norms", "whole"])
def test_a_run_of_an_earlier_version_knows_its_base_by_its_weights_alone(make, bases, tmp_path, capsys, keys):
    """Its manifests say nothing of the base's files; those of an adapter hold a digest of the weights under it."""
    run, half = tmp_path / "run", tmp_path / "half"
    words = [*keys, "--output_dir", run]
    whole = job.pretrain(make("ibnorm", *words)).validation["loss"]
    for path in run.glob("*/manifest.json"):
        manifest = load(path)
        assert manifest.pop("pretrained_sha256") and ("base" in manifest) is bool(keys)
        path.write_text(json.dumps(manifest))
    shutil.copytree(run, half)
    shutil.rmtree(half / "model")
    shutil.rmtree(half / "checkpoint-12")
    assert job.pretrain(make("ibnorm", *words)).found
    assert job.pretrain(make("ibnorm", *keys, "--output_dir", half)).validation["loss"] == whole
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert main(["eval", str(run), "--tasks", "perplexity"]) == 0
    if not keys:
        return
    uses = [["export", run, tmp_path / "again"], ["eval", run, "--tasks", "perplexity"]]
    uses += [
        ["eval", run, "--tasks", "leaderboard_ifeval", "--limit", "1"],
        ["push", run, "--repo_id", "a/b", "--dry_run"],
    ]
    path = bases["ibnorm"] / "model.safetensors"
    content = path.read_bytes()
    shutil.rmtree(half / "model")
    shutil.rmtree(half / "checkpoint-12")
    try:
        path.write_bytes(content[:-4] + b"\x00\x00\x80\x3f")
        for folder in (run, half):  # finished, and to go on with
            for manifest in folder.glob("*/manifest.json"):
                facts = load(manifest)
                facts.pop("pretrained_sha256", None)
                manifest.write_text(json.dumps(facts))
            with pytest.raises(UserError, match="have changed since"):
                job.pretrain(make("ibnorm", *keys, "--output_dir", folder))
        for use in uses:
            capsys.readouterr()
            assert main([str(word) for word in use]) == 2, use
            said = capsys.readouterr().err
            assert re.search(CHANGED, said) and "Traceback" not in said
    finally:
        path.write_bytes(content)


def test_a_base_with_weights_too_many_is_refused(make, bases, tmp_path):
    folder = shutil.copytree(bases["ibnorm"], tmp_path / "odd")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.extra.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights and config.json disagree \(unexpected keys: model.extra.weight\)"):
        load_pretrained(str(folder))


@pytest.mark.parametrize(
    "keys, sentence",
    [
        (["--model.hidden_size", 64], "key model follows from `pretrained`"),
        (["--model_type", "llama"], "key model_type follows from `pretrained`"),
        (["--train_only", "embeddings"], "key train_only must be norms"),
        (["--adapter", "prefix"], "key adapter must be lora, norms, or null"),
        (["--adapter", "lora", "--train_only", "norms"], "exclude each other"),
        (["--norm_lambda_schedule", "{start: auto}", "--norm_lambda_learned", "true"], "exclude each other"),
        (["--adapter", "lora", "--norm_type", "ibnorm-l"], "remembers only the name of its base"),
        (["--adapter", "lora", "--lora_r", 0], "key lora_r must be at least 1"),
        (["--norm_lambda", 4], "keeps its own norms; give norm_type"),
        (["--norm_type", "ibnorm-l", "--norm_lambda", 1, 2], "norm_lambda lists 2 values"),
        (["--norm_type", "rmsnorm", "--norm_lambda_schedule", "{}"], "rmsnorm compresses nothing"),
        (["--norm_lambda_schedule", "falling"], "norm_lambda_schedule is a mapping"),
        (["--norm_lambda_schedule", '{"begin": 1}'], "unknown key 'norm_lambda_schedule.begin'"),
        (["--norm_lambda_schedule", "{start: auto, stage: 5}"], "did you mean 'stages'"),
        (["--block_size", 128], "exceeds the model's 64 positions; lower block_size"),
        (["--norm_lambda_schedule", '{"stages": 1}'], "stages must be a whole number"),
        (["--norm_lambda_schedule", '{"start": 0}'], "start must be auto, or above 0"),
        (["--norm_lambda_schedule", '{"end": "nan"}'], "end must be above 0"),
        (["--norm_lambda_schedule", '{"anneal_share": 0.01}'], "anneal_share must be at least warmup_share"),
        (["--norm_type", "ibnorm-l", "--norm_lambda_schedule", '{"start": 2, "end": 3}'], "lambda must fall"),
        (
            ["--norm_type", "ibnorm-l", "--norm_lambda", 2, "--norm_lambda_schedule", '{"end": 3}'],
            "give only one of them",
        ),
    ],
)
def test_mistakes_are_one_sentence(make, keys, sentence):
    with pytest.raises(UserError) as error:
        job.pretrain(make("llama", *keys))
    assert sentence in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2


def test_the_command_needs_weights_to_start_from(recipe_file, capsys, tmp_path):
    assert main(["finetune", str(recipe_file)]) == 2
    assert "key pretrained is missing" in capsys.readouterr().err
    assert main(["finetune", str(recipe_file), "--pretrained", str(tmp_path / "absent")]) == 2
    assert main(["pretrain", str(recipe_file), "--adapter", "lora"]) == 2
    assert "needs `pretrained`" in capsys.readouterr().err


def test_a_resolved_recipe_is_a_recipe(make, tmp_path):
    keys = ["--norm_type", "ibnorm-l", "--norm_lambda_schedule", json.dumps(SCHEDULE), "--max_steps", 1]
    job.pretrain(make("llama", *keys))
    job.pretrain(load_recipe(tmp_path / "run" / "config.yaml", ["--output_dir", str(tmp_path / "again")]))
    assert metrics(tmp_path / "run")[-1] == metrics(tmp_path / "again")[-1]


def test_the_resolved_recipe_of_an_adapter_is_a_recipe(make, tmp_path):
    content = resolved(make("ibnorm", "--adapter", "lora"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert resolved(load_recipe(tmp_path / "config.yaml", [])) == content


def test_a_schedule_may_end_below_the_lambda_of_its_base(make):
    recipe = make("ibnorm", "--norm_lambda_schedule", '{"start": 5, "end": 0.2}')
    schedule, end = lambda_schedule(recipe, build_config(recipe))
    assert schedule.start == 5 and end == 0.2
    recipe = make("ibnorm", "--norm_lambda_schedule", '{"start": 5}')
    assert lambda_schedule(recipe, build_config(recipe))[1] == 0.7
    recipe = make("ibnorm", "--norm_lambda_schedule", '{"unit": "spread"}')
    with pytest.raises(UserError, match=r"give end, in spreads; the lambda of .* is absolute"):
        lambda_schedule(recipe, build_config(recipe))


@pytest.mark.parametrize("norm_order", ["compress-first", "standardize-first"])
def test_a_spread_is_of_what_is_compressed(bases, norm_order):
    model = AutoModelForCausalLM.from_pretrained(bases["ibnorm"])
    for _, (norm,) in iter_norms(model):
        norm.norm_order = norm_order
    ids = torch.arange(5, 37).view(2, 16)
    spreads = measure_spreads(model, ids, ids)
    if norm_order == "standardize-first":
        assert spreads == pytest.approx([1] * 5, rel=1e-2)
    else:
        assert len({round(spread, 2) for spread in spreads}) > 1


def test_calibration_counts_targets_alone(bases):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"])
    ids = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :12], labels[1, :4] = IGNORED, IGNORED
    with torch.no_grad():
        nats = -model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    wanted = (nats[0, 11:].sum() + nats[1, 3:].sum()) / (4 + 12)
    assert nats_per_token(model, ids, labels) == pytest.approx(wanted.item(), rel=1e-5)


def test_a_base_that_predicts_no_tokens_is_refused(make, bases, tmp_path):
    folder = tmp_path / "classifier"
    AutoModelForSequenceClassification.from_pretrained(bases["llama"]).save_pretrained(folder)
    with pytest.raises(UserError, match="holds a LlamaForSequenceClassification, which is no causal language model"):
        make_plan(make("llama", "--pretrained", folder))


def test_a_run_from_before_some_key_existed_goes_on(make, tmp_path):
    job.pretrain(make("llama"))
    for path in (tmp_path / "run").glob("checkpoint-*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["run_id"] = "another"
        del manifest["recipe"]["completion_column"]
        path.write_text(json.dumps(manifest))
    job.pretrain(make("llama"))
    path.write_text(json.dumps({**manifest, "recipe": {**manifest["recipe"], "seed": 7}}))
    with pytest.raises(UserError, match="seed is 7 there and 42 here"):
        job.pretrain(make("llama", "--resume", path.parent))


def test_a_base_that_is_not_whole_is_refused(bases, tmp_path):
    weights = load_file(bases["llama"] / "model.safetensors")
    shutil.copytree(bases["llama"], tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()  # it would tell at once
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"half lacks 1 weights of LlamaForCausalLM, first model\.layers\.1"):
        load_pretrained(str(tmp_path / "half"))
    (tmp_path / "half" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="half cannot be loaded"):
        load_pretrained(str(tmp_path / "half"))


def test_the_folder_of_a_run_is_no_base(bases):
    run = bases["llama"].parent
    with pytest.raises(UserError, match="holds no model") as error:
        load_pretrained(str(run))
    assert str(error.value).endswith(f"; give {run / 'model'}")


def test_an_adapter_on_a_gguf_file_is_refused(tmp_path):
    (tmp_path / "base.gguf").touch()
    with pytest.raises(UserError, match="a GGUF file, does not have: make it a folder by `ibnorm-hf convert`"):
        take_trained_part(None, ModelArguments(adapter="lora", pretrained=str(tmp_path / "base.gguf")))
