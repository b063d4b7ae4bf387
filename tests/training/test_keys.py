# SPDX-License-Identifier: Apache-2.0
"""Every key: what null means, what is bound, what a folder writes down, and what accelerate may add."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.folder.run_folder import claim, write_environment
from ibnorm_hf.training.keys.arguments import DataArguments, ModelArguments, RunArguments
from ibnorm_hf.training.keys.describe import key_lines
from ibnorm_hf.training.keys.identity import differences, identity, run_id
from ibnorm_hf.training.keys.image_arguments import ImageArguments
from ibnorm_hf.training.keys.reading import key_types, known_keys, read
from ibnorm_hf.training.keys.recipe import Recipe, bound, load_recipe, resolved
from ibnorm_hf.training.keys.table import BOUND, FREE, IDENTITY_VERSION, REFUSED, SYNONYMS, VERSION_KEY
from ibnorm_hf.training.keys.values import fit

OLDER = json.loads((Path(__file__).parent / "runs_of_identity_1.json").read_text())
RESNET = Path(__file__).parents[2] / "recipes" / "resnet" / "tiny.yaml"


def images(*words: str) -> Recipe:
    return load_recipe(RESNET, ["--output_dir", "run", *words])


SAMPLES = {
    "null": [None],
    "true or false": [True, False],
    "false": [False],
    "a whole number": [3],
    "a number": [3, 0.5],
    "a text": ["word", 3, 0.5],
    "a list": [["word"], [0.5]],
    "a mapping": [{"a": 1}],
}


@pytest.mark.parametrize("data", [DataArguments, ImageArguments])
def test_what_keys_prints_of_a_type_is_what_the_parser_takes(data, tmp_path: Path):
    """Of every key: each kind of value that its line names is taken, and each that it does not name is refused."""
    told = dict(re.findall(r"^(\w+): ([^;]*); default", "\n".join(key_lines()), re.M))
    keys = [key for key in known_keys(data) if key != "images"]
    assert len(keys) > 90 and set(keys) <= set(told)

    def takes(key, value) -> bool:
        (tmp_path / "k.yaml").write_text(
            yaml.safe_dump({key: value} | ({"images": "digits"} if data is ImageArguments else {}))
        )
        try:
            read(tmp_path / "k.yaml", [])
        except UserError:
            return False
        return True

    wrong = []
    for key in keys:
        named = told[key]
        if named.startswith("one of "):
            names = named.removeprefix("one of ").split(", ")
            wrong += [(key, name) for name in names if not takes(key, name)]
            wrong += [(key, name) for name in ("word", [names[0]]) if takes(key, name)]
            continue
        kinds = [kind for kind in SAMPLES if re.search(rf"(^| or ){kind}( or |$)", named)]
        assert kinds and set(" or ".join(kinds).split()) == set(named.split()), (key, named)
        items = [value for kind in kinds for value in SAMPLES[kind] if kind != "a list"]
        listed = [[value] for value in items if isinstance(value, (str, float))] if "a list" in kinds else []
        wrong += [(key, value) for value in [*items, *listed[:1]] if not takes(key, value)]
        others = [value for values in SAMPLES.values() for value in values if not any(_same(value, i) for i in items)]
        others = [v for v in others if not (isinstance(v, list) and "a list" in kinds)]
        wrong += [(key, value) for value in others if takes(key, value)]
    assert not wrong


def _same(a, b) -> bool:
    return type(a) is type(b) and a == b


# ---- null ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [DataArguments, ImageArguments])
def test_null_is_null_in_a_file_and_on_the_command_line_or_refused(data, tmp_path: Path):
    path, empty = tmp_path / "r.yaml", tmp_path / "empty.yaml"
    base = "images: digits\n" if data is ImageArguments else ""
    empty.write_text(base or "{}")
    seen = {True: 0, False: 0}
    for key, kind in key_types(data).items():
        if key not in known_keys(data) or key == "images":
            continue
        path.write_text(f"{base}{key}: null\n")
        try:
            fit(kind, None)
            allowed = True
        except ValueError:
            allowed = False
        seen[allowed] += 1
        for file, words in ((path, []), (empty, [f"--{key}", "null"]), (empty, [f"--{key}=~"])):
            if allowed:
                assert read(file, words).values[key] is None
            elif kind not in (str, str | list[object]) or not words:  # null is a text as good as any other there
                with pytest.raises(UserError, match=f"key {key}: .*is not"):
                    read(file, words)
    assert seen[True] > 20 and seen[False] > 20


def test_documented_nulls_reach_the_run(make_recipe, recipe_file: Path):
    recipe_file.write_text(recipe_file.read_text() + "save_total_limit: null\ngrad_spike_factor: null\n")
    run = make_recipe().run
    assert run.save_total_limit is None and run.grad_spike_factor is None
    assert make_recipe("--save_total_limit", "3").run.save_total_limit == 3
    assert make_recipe("--report_to", "null").run.report_to == []
    with pytest.raises(UserError, match=r"key max_grad_norm: .*null.* is not a number"):
        make_recipe("--max_grad_norm", "null")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--norm_lambda", "1", "2e0", "3"], "norm_lambda", [1.0, 2.0, 3.0]),
        (["--norm_lambda=[1, 2]"], "norm_lambda", [1.0, 2.0]),
        (["--max_steps", "1e3"], "max_steps", 1000),
        (["--bf16"], "bf16", True),
        (["--bf16=no"], "bf16", False),
        (["--lr_scheduler_kwargs", "{min_lr: 1e-4}"], "lr_scheduler_kwargs", {"min_lr": 1e-4}),
        (["--run_name", "007"], "run_name", "007"),
        (["--corpus", "-x"], "corpus", "-x"),
        (["--report_to", "tensorboard", "wandb"], "report_to", ["tensorboard", "wandb"]),
        (["--learning-rate", "1e-3", "--learning_rate", "2e-3"], "learning_rate", 2e-3),
    ],
)
def test_words_become_values(tmp_path: Path, words, key, value):
    (tmp_path / "r.yaml").write_text("{}")
    got = read(tmp_path / "r.yaml", words).values[key]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("value", ["yes", 2, "1.5.0", [1], {"a": 1}, "inf", float("nan")])
def test_wrong_values_are_refused(value, tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"max_steps": value}))
    if value == 2:
        assert read(path, []).values["max_steps"] == 2
    else:
        with pytest.raises(UserError, match=r"key max_steps: .* is not a whole number"):
            read(path, [])


def test_a_strategy_that_yaml_reads_as_false_is_no(recipe_file: Path):
    recipe_file.write_text(recipe_file.read_text() + "eval_strategy: no\nsave_strategy: no\n")
    run = load_recipe(recipe_file).run
    assert (run.eval_strategy, run.save_strategy) == ("no", "no")


# ---- the table -------------------------------------------------------------------------------------------


def test_the_table_names_every_key_of_the_installed_transformers_once():
    installed = {f.name for f in dataclasses.fields(TrainingArguments)}
    assert not (BOUND & FREE or BOUND & set(REFUSED) or FREE & set(REFUSED))
    assert installed - (BOUND | FREE | set(REFUSED) | set(SYNONYMS)) == set()
    assert (BOUND | FREE | set(REFUSED)) - installed <= {"per_gpu_train_batch_size"}


def test_a_key_that_the_table_does_not_know_is_refused(recipe_file: Path, monkeypatch):
    monkeypatch.setattr("ibnorm_hf.training.keys.reading.BOUND", BOUND - {"weight_decay"})
    with pytest.raises(UserError, match="unknown key 'weight_decay'"):
        load_recipe(recipe_file, ["--weight_decay", "0.1"])


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_refused_keys_say_why(key: str, recipe_file: Path):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file, [f"--{key}", "true"])
    assert REFUSED[key] in str(caught.value)


def test_own_free_keys_exist():
    for cls in (DataArguments, ImageArguments, RunArguments):
        assert cls.free <= {f.name for f in dataclasses.fields(cls)}
    assert all(bound(f.name, DataArguments) for f in dataclasses.fields(ModelArguments))


def test_free_keys_leave_the_identity_alone_and_bound_ones_do_not(make_recipe):
    before = identity(resolved(make_recipe("--global_batch_size", 8)))
    for words in (("--logging_steps", 1), ("--save_steps", 2), ("--activation_checkpointing", "true")):
        assert identity(resolved(make_recipe("--global_batch_size", 8, *words))) == before
    for words in (("--optim", "adafactor"), ("--adam_epsilon", 1e-3), ("--bf16", "true"), ("--seed", 1)):
        changed = differences(before, identity(resolved(make_recipe("--global_batch_size", 8, *words))))
        assert len(changed) == 1 and changed[0].startswith(words[0][2:])


def test_when_it_is_validated_is_bound_where_the_scheduler_looks_at_it(make_recipe):
    plateau = ("--lr_scheduler_type", "reduce_lr_on_plateau")
    a, b = (identity(resolved(make_recipe(*plateau, "--eval_steps", n))) for n in (2, 3))
    assert differences(a, b) == ["eval_steps is 2 there and 3 here"]
    a, b = (identity(resolved(make_recipe("--eval_steps", n))) for n in (2, 3))
    assert differences(a, b) == []


def test_images_bind_what_changes_their_model(monkeypatch):
    whole = identity(resolved(images()))
    split = identity(resolved(images("--per_device_train_batch_size", "8")))
    assert differences(whole, split) == ["per_device_train_batch_size is 64 there and 8 here"]
    assert differences(whole, identity(resolved(images("--sync_batch_norm", "true")))) != []
    assert differences(whole, identity(resolved(images("--activation_checkpointing", "true")))) != []
    monkeypatch.setattr(RunArguments, "world_size", property(lambda self: 2))
    two = resolved(images("--per_device_train_batch_size", "32"))
    assert "processes is 1 there and 2 here" in differences(whole, identity(two))
    with pytest.raises(UserError, match="key processes is 1, but the launcher started 2"):
        images("--processes", "1", "--per_device_train_batch_size", "32")


# ---- config.yaml and identity ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "images"])
def test_every_key_that_decides_is_written_down(kind: str, make_recipe):
    recipe = make_recipe() if kind == "text" else images()
    out, data = resolved(recipe), type(recipe.data)
    missing = {key for key in known_keys(data) if bound(key, data)} - set(out)
    assert all(key.startswith("lora_") for key in missing)
    assert out[VERSION_KEY] == IDENTITY_VERSION
    assert out["optim"] == "adamw_torch_fused" and out["bf16"] is False and out["adam_epsilon"] == 1e-8
    assert "optim" in identity(out)


def test_a_default_of_the_library_that_changes_is_another_run(make_recipe):
    recipe = make_recipe()
    before, first = identity(resolved(recipe)), run_id(recipe)
    recipe.run.optim = "adafactor"  # as another version of transformers would have decided
    assert run_id(recipe) != first
    assert differences(before, identity(resolved(recipe))) == ["optim is adamw_torch_fused there and adafactor here"]


@pytest.mark.parametrize("kind", ["text", "images"])
def test_runs_of_the_first_identity_are_still_themselves(kind: str, make_recipe):
    older = OLDER[kind]
    now = make_recipe("--save_total_limit", 3, "--corpus", "LICENSE") if kind == "text" else images()
    mine = identity(resolved(now))
    assert VERSION_KEY not in older["config"]
    assert differences(identity(older["config"]), mine) == []
    assert differences(older["manifest"]["recipe"], mine) == []
    for changed in ({"optim": "adafactor"}, {"bf16": True}, {"seed": 7}, {"learning_rate": 1.0}):
        assert [text.split()[0] for text in differences(older["config"], {**mine, **changed})] == list(changed)
        assert len(differences(older["manifest"]["recipe"], {**mine, **changed})) == 1


def test_a_folder_of_the_first_identity_is_claimed_and_written_anew(make_recipe, tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(OLDER["text"]["config"], sort_keys=False))
    (folder / "metrics.jsonl").write_text("{}\n")
    with claim(make_recipe("--corpus", "LICENSE", "--logging_steps", 1)):
        assert yaml.safe_load((folder / "config.yaml").read_text())[VERSION_KEY] == IDENTITY_VERSION
    other = make_recipe("--corpus", "LICENSE", "--adam_beta1", 0.8)
    with pytest.raises(UserError, match=r"holds another run .adam_beta1 is 0.9 there and 0.8 here"), claim(other):
        pass


def test_a_key_that_a_later_version_adds_makes_older_folders_no_other_run(make_recipe):
    mine = identity(resolved(make_recipe()))
    theirs = {key: value for key, value in mine.items() if key not in ("validation_tokens", "norm_lambda_schedule")}
    assert differences(theirs, mine) == []
    assert len(differences(theirs, {**mine, "validation_tokens": 77})) == 1


def test_a_folder_of_a_later_version_is_refused(make_recipe, tmp_path: Path):
    out = {**resolved(make_recipe()), VERSION_KEY: IDENTITY_VERSION + 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(out))
    with pytest.raises(UserError, match="later version of ibnorm_hf"):
        load_recipe(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="later version of ibnorm_hf"):
        differences(out, out)


# ---- accelerate's settings -------------------------------------------------------------------------------


def test_mixed_precision_of_accelerate_becomes_the_recipes(make_recipe, monkeypatch):
    plain = identity(resolved(make_recipe()))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    recipe = make_recipe()
    assert recipe.run.bf16 is True and resolved(recipe)["bf16"] is True
    assert differences(plain, identity(resolved(recipe))) == ["bf16 is False there and True here"]
    for words in (("--bf16", "false"), ("--fp16", "true")):
        with pytest.raises(UserError, match=r"mixed_precision is bf16, but command line says"):
            make_recipe(*words)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert make_recipe("--bf16").run.bf16 is True


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision is fp8, which is not supported"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "key torch_compile"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "megatron_lm"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "key activation_checkpointing"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "deepspeed_config_file is ds.json"),
    ],
)
def test_settings_without_a_key_are_refused(settings, said, make_recipe, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        make_recipe()


def test_settings_that_say_nothing_pass(make_recipe, monkeypatch):
    for name, value in (
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),  # without FSDP
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"),
    ):
        monkeypatch.setenv(name, value)
    assert make_recipe().run.bf16 is False


def test_clipping_of_deepspeed_must_be_the_recipes(make_recipe, monkeypatch):
    from ibnorm_hf.training.keys.launch import check_launch

    run = make_recipe("--max_grad_norm", 0.5).run
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for setting, right in (("auto", True), ("0.5", True), ("1.0", False)):
        monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", setting)
        if right:
            check_launch(run, "r.yaml")
        else:
            with pytest.raises(UserError, match=r"gradient_clipping is 1.0, but the recipe's max_grad_norm is 0.5"):
                check_launch(run, "r.yaml")


def test_several_devices_and_one_process_are_refused(make_recipe, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    with pytest.raises(UserError, match=r"4 devices and one process: .*accelerate launch --num_processes 4"):
        make_recipe()


# ---- names of run folders --------------------------------------------------------------------------------


def test_sweeps_do_not_share_a_folder(recipe_file: Path):
    def folder(*words: str) -> str:
        return str(load_recipe(recipe_file, list(words)).run.output_dir)

    base = folder()
    assert base == "runs/tiny-ibnorm-llama-seed42"
    assert folder("--learning_rate", "1e-3") == folder("--learning_rate", "0.001") == f"{base}-learning_rate-0.001"
    assert folder("--model.hidden_size", "64", "--norm_lambda", "2") == f"{base}-hidden_size-64-norm_lambda-2.0"
    assert folder("--logging_steps", "1", "--use_cpu") == base
    assert folder("--norm_type", "ibnorm-t", "--seed", "3") == "runs/tiny-ibnorm-t-seed3"
    long = [word for key in ("corpus_config", "corpus_revision") for word in (f"--{key}", "x" * 60)]
    assert len(folder(*long)) < 70 and folder(*long) != folder(*long[:-1], "y" * 60)


def test_dots_end_no_name(tmp_path: Path):
    (tmp_path / "fine.yaml").write_text("corpus: embedded\n")
    names = {
        load_recipe(tmp_path / "fine.yaml", ["--pretrained", source]).run.output_dir
        for source in ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.6B", "folder/model.q8.gguf")
    }
    assert names == {
        "runs/fine-qwen2.5-0.5b-seed42",
        "runs/fine-qwen2.5-0.6b-seed42",
        "runs/fine-model.q8-seed42",
    }


# ---- starts ----------------------------------------------------------------------------------------------


def test_every_start_keeps_its_entry(tmp_path: Path, monkeypatch):
    write_environment(tmp_path, seed=1, processes=1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    write_environment(tmp_path, seed=1, processes=2)
    write_environment(tmp_path, seed=1, processes=4)
    content = json.loads((tmp_path / "environment.json").read_text())
    starts = [*content.pop("earlier"), content]
    assert [(entry["processes"], entry["strategy"]) for entry in starts] == [(1, "copy"), (2, "fsdp"), (4, "fsdp")]
    assert all("torch" in entry["versions"] and "earlier" not in entry for entry in starts)
    (tmp_path / "environment.json").write_text("{half")
    write_environment(tmp_path, seed=1, processes=1)
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 1
