# SPDX-License-Identifier: Apache-2.0
"""Recipes: what is accepted, and one sentence for everything that is not."""

from pathlib import Path

import pytest
import yaml
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training import memory
from ibnorm_hf.training.job import pretrain, print_plan
from ibnorm_hf.training.keys.identity import identity
from ibnorm_hf.training.keys.recipe import load_recipe, resolved
from ibnorm_hf.training.model.build import build_config
from ibnorm_hf.training.plan import make_plan

from ..foreign import FOREIGN


def test_command_line_overrides_file(make_recipe):
    recipe = make_recipe("--learning_rate", "1e-3", "--model.hidden_size=48", "--norm-type", "ibnorm-t", "--bf16")
    assert recipe.run.learning_rate == 1e-3
    assert recipe.sizes["hidden_size"] == 48
    assert recipe.model.norm_type == "ibnorm-t"
    assert recipe.run.bf16 is True
    assert build_config(recipe).norm_type == "ibnorm-t"


def test_norms_are_chosen_by_site_and_by_name(make_recipe, tmp_path: Path):
    recipe = make_recipe("--norm_scope", "pre-mlp", "final", "--norm_exclude", "layers.0.*")
    config = build_config(recipe)
    assert config.norm_scope == ["pre-mlp", "final"] and config.norm_exclude == ["layers.0.*"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(resolved(recipe)))
    assert resolved(load_recipe(path)) == resolved(recipe)
    one, whole = make_recipe("--norm_scope", "final"), make_recipe()
    assert build_config(one).norm_scope == "final" and build_config(whole).norm_scope == "all"
    assert identity(resolved(one)) != identity(resolved(whole))


def test_numbers_that_yaml_reads_as_strings(recipe_file: Path):
    # YAML 1.1 takes `1e-3` for a string.
    recipe_file.write_text(recipe_file.read_text().replace("1.0e-2", "1e-3"))
    assert load_recipe(recipe_file).run.learning_rate == 1e-3
    assert load_recipe(recipe_file, ["--model.rms_norm_eps", "1e-6"]).sizes["rms_norm_eps"] == 1e-6


def test_resolved_recipe_is_a_recipe(make_recipe, tmp_path: Path):
    recipe = make_recipe("--norm_lambda", 2, "--lr_scheduler_kwargs", '{"num_cycles": 0.4}', "--weight_decay", 0.1)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(resolved(recipe)))
    again = load_recipe(path)
    assert resolved(again) == resolved(recipe)
    assert again.run.lr_scheduler_kwargs == {"num_cycles": 0.4}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lerning_rate", "1"], "command line: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--learning_rate", "fast"], "command line: key learning_rate: 'fast' is not a number"),
        (["--max_steps", "1.5"], "command line: key max_steps: '1.5' is not a whole number"),
        (["--bf16", "perhaps"], "bf16"),
        (["--lr_scheduler_type", "cosin"], "command line: key lr_scheduler_type: 'cosin' is not one of linear, cosine"),
        (["--max_steps", "0"], "key max_steps must be at least 1"),
        (["--model.hiden_size", "8"], "unknown key 'model.hiden_size'; did you mean 'hidden_size'?"),
        (["--model.hidden_size", "wide"], "key model.hidden_size: 'wide' is not a whole number"),
        (["--model.hidden_size", "33"], "33"),
        (["--model.norm_type", "dyt"], "write norm_type"),
        (["--norm_type", "ibnorm-q"], "ibnorm-q"),
        (["--norm_lambda", "0"], "lambda"),
        (
            ["--norm_scope", "finl"],
            "Unknown norm_scope 'finl'; known: all, final, pre-attention, pre-mlp. Did you mean",
        ),
        (["--norm_exclude", "q_norm"], "exclude names 'q_norm', but IBNormLlamaForCausalLM has no such norm"),
        (["--norm_lambda", "nan"], "lambda"),
        (["--model_type", "lama"], "unknown model type 'lama'; did you mean"),
        (["--model_type", "llama", "--norm_type", "ibnorm-l"], "use model_type ibnorm_llama"),
        (["--model_type", FOREIGN, "--norm_type", "ibnorm-l"], f"there is no ibnorm_{FOREIGN}"),
        (["--block_size", "128"], "block_size 128 exceeds the model's 64 positions"),
        (["--global_batch_size", "6"], "must be a multiple of per_device_train_batch_size x processes = 4"),
        (["--global_batch_size", "8", "--gradient_accumulation_steps", "3"], "which needs 2"),
        (["--resume_from_checkpoint", "x"], "use `resume`"),
        (["--hub_token", "hf_x"], "secrets do not belong"),
        (["--push_to_hub", "true"], "push_to_hub needs hub_model_id"),
        (["stray"], "'stray' is not a --key"),
        (["--seed"], "seed"),
        (["--validation_fraction", "2"], "between 0 and 0.5"),
        (["--eval_strategy", "epoch"], "a run has no epochs"),
    ],
)
def test_mistakes_are_one_sentence(make_recipe, words, said):
    with pytest.raises(UserError) as caught:
        make_plan(make_recipe(*words))
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_steps: [", "line 1: not valid YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("seed: 1\nseed: 2\n", "line 2: not valid YAML: key 'seed' is there twice"),
        ("model: big\n", "key 'model' is a mapping of sizes"),
        ("corpos: embedded\n", "unknown key 'corpos'; did you mean 'corpus'?"),
        ("? [1, 2]\n: x\n", "not valid YAML"),
        ("seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path: Path, text, said):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.yaml") as caught:
        load_recipe(path)
    assert said in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is unreadable"):
        load_recipe(tmp_path / "b.yaml")


def test_accumulation_follows_from_the_global_batch(make_recipe):
    recipe = make_recipe("--global_batch_size", 12)
    assert recipe.run.gradient_accumulation_steps == 3
    # How the batch is split does not make it another run; its size does.
    split = make_recipe("--global_batch_size", 12, "--per_device_train_batch_size", 2)
    assert identity(resolved(split)) == identity(resolved(recipe))
    assert identity(resolved(make_recipe("--global_batch_size", 16))) != identity(resolved(recipe))


# ---- before anything is packed ---------------------------------------------------------------------------


@pytest.mark.parametrize("tracker", ["wandbb", *sorted(INTEGRATION_TO_CALLBACK)])
def test_a_dry_run_knows_whether_a_tracker_can_be_used(tracker, recipe_file, capsys):
    """Every tracker of transformers whose package is absent here, and a word that is none."""
    code = main(["pretrain", str(recipe_file), "--dry_run", "--report_to", "tensorboard", tracker])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if code == 0:
        assert tracker != "wandbb" and not said
        return
    assert code == 2 and said.count("\n") == 1 and said.startswith(f"error: key report_to: {tracker} cannot be used: ")
    assert ("is not supported, only" if tracker == "wandbb" else "is not installed") in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--report_to", "mlflow"], "key report_to: mlflow cannot be used: package mlflow is not installed"),
        (["--report_to", "nothing"], "key report_to: nothing cannot be used: nothing is not supported"),
        (["--optim", "adamw_bnb_8bit"], "key optim: adamw_bnb_8bit cannot be used: "),
        (["--lr_scheduler_type", "warmup_stable_decay"], "key lr_scheduler_type: warmup_stable_decay with"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "key lr_scheduler_type: cosine_with_min_lr with"),
        (["--lr_scheduler_kwargs", "{min_lr: 1}"], "key lr_scheduler_type: cosine with lr_scheduler_kwargs"),
    ],
)
@pytest.mark.parametrize("job", [print_plan, pretrain])
def test_what_only_trainer_would_notice_is_said_before_packing(words, said, job, make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ibnorm_hf.training.text_task.prepare", lambda recipe: pytest.fail("packed before"))
    with pytest.raises(UserError) as caught:
        job(make_recipe(*words))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_plan_that_does_not_fit_is_refused_with_the_micro_batch_that_does(make_recipe, monkeypatch, capsys):
    words = ("--global_batch_size", 64, "--per_device_train_batch_size", 64)
    plan = make_plan(make_recipe(*words))
    a_sample = plan.bytes_activations // 64
    monkeypatch.setattr(memory, "room", lambda run: plan.bytes_state + 40 * a_sample)
    monkeypatch.setattr("ibnorm_hf.training.text_task.prepare", lambda *_: pytest.fail("went on"))
    with pytest.raises(UserError, match=r"per_device_train_batch_size 32 is the largest that fits; --force tries"):
        pretrain(make_recipe(*words))
    print_plan(make_recipe(*words))
    assert "memory: weights, optimizer and activations need" in capsys.readouterr().out
    assert memory.shortage(make_plan(smaller := make_recipe(*words[:3], 32)), smaller) is None
    with pytest.raises(pytest.fail.Exception, match="went on"):
        pretrain(make_recipe(*words, "--force"))
    monkeypatch.setattr(memory, "room", lambda run: plan.bytes_state)
    with pytest.raises(UserError, match="no micro-batch fits"):
        pretrain(make_recipe(*words))


def test_room_is_what_the_container_may_have(make_recipe, monkeypatch, tmp_path: Path):
    run = make_recipe().run
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "max")
    everything = memory.room(run)
    assert everything > 2**28
    (tmp_path / "max").write_text("1048576\n")
    assert memory.room(run) == 2**20
    (tmp_path / "max").write_text("max\n")
    assert memory.room(run) == everything


def test_activation_checkpointing_keeps_less(make_recipe):
    sizes = ("--model.num_hidden_layers", 8)
    whole, again = (make_plan(make_recipe(*sizes, *w)) for w in ((), ("--activation_checkpointing", "true")))
    assert again.bytes_activations < whole.bytes_activations


def test_a_recipe_that_names_no_model_is_refused(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"recipe r: key model is missing: .*or `pretrained`"):
        make_plan(load_recipe(tmp_path / "r.yaml"))


def test_a_value_that_looks_like_a_token_is_refused(tmp_path):
    """It would stand in config.yaml, on the card, and in what TensorBoard is told."""
    token = "hf_" + "a1B2" * 8
    path = tmp_path / "recipe.yaml"
    path.write_text("max_steps: 1\n")
    with pytest.raises(UserError, match=r"key run_name.* access token") as caught:
        load_recipe(path, ["--run_name", token])
    assert token not in str(caught.value)
