# SPDX-License-Identifier: Apache-2.0
"""A study from its file to its report, with runs of a second."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.hub.card import write_card
from ibnorm_hf.modeling.norms import RMSNorm
from ibnorm_hf.studies import executors
from ibnorm_hf.studies.compare import open_study
from ibnorm_hf.studies.definition import read_definition
from ibnorm_hf.studies.executors import Local
from ibnorm_hf.studies.plan import as_words, claims, noise_floor, overrides, tuning
from ibnorm_hf.studies.runs import Job, execute, state
from ibnorm_hf.training.job import pretrain
from ibnorm_hf.training.keys.recipe import load_recipe

from .kills import write_study

ROOT = Path(__file__).resolve().parents[2]
BASE = f"""
model_type: ibnorm_llama
model: {{vocab_size: 512, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
  max_position_embeddings: 32}}
corpus: {ROOT / "LICENSE"}
tokenizer: train
block_size: 32
validation_fraction: 0.1
max_steps: 4
global_batch_size: 2
per_device_train_batch_size: 2
learning_rate: 1.0e-2
logging_steps: 2
eval_steps: 4
save_steps: 2
report_to: none
"""
STUDY = """
base: base.yaml
baseline: rmsnorm
margin: 0.05
arms:
  rmsnorm: {norm_type: rmsnorm, source: "arXiv:1910.07467"}
  l: {norm_type: ibnorm-l}
claim_seeds: [1, 2, 3, 4, 5]
budgets: [1, 2]
"""
GRID = "grid: {learning_rate: [0.1, 0.2, 0.4]}\nextend: true\ntuning_seeds: [101]\ntuning_budgets: [1]\n"


class Here:
    """Makes runs in this process, and remembers which."""

    def __init__(self):
        self.made = []

    def run(self, jobs):
        for job in jobs:
            self.made.append(Path(job.folder).name)
            execute(job)
            yield job, None


def write(folder, text=STUDY, base=BASE):
    return write_study(folder, text, base)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    here, said = Here(), []
    comparison = open_study(write(folder), folder / "out", here, said.append)
    return folder, comparison.run(), here.made, said


def test_a_study_ends_in_a_report_of_every_run(undisturbed):
    folder, judged, made, said = undisturbed
    report = folder / "out" / "report"
    assert json.loads((report / "report.json").read_text()) == judged
    assert set(judged["arms"]) == {"rmsnorm", "l"} and judged["refused"] == [] and judged["tuned"] is False
    runs = judged["runs"]
    assert {run["run"] for run in runs} == set(made) and {run["phase"] for run in runs} == {"claim", "curve"}
    assert {run["model_sha256"] for run in runs} == {None} and not list((folder / "out").rglob("*.safetensors"))
    # The noise floor's runs are the ablation's claim runs at the smallest budget: made once.
    assert len(made) == len(set(made)) == 2 * 2 * 5
    assert len((report / "runs.csv").read_text().splitlines()) == 1 + 20 + 5
    assert any("sigma" in line for line in said) and any("seeds" in line for line in said)
    assert {p.name for p in report.iterdir()} >= {"report.md", "report.html", "curves-1x.png", "timing.json"}
    assert "bits a byte" in judged["arms"]["l"]["effects"]
    assert not list((folder / "out").rglob("checkpoint-*"))


def test_the_same_command_runs_nothing_and_writes_the_same_bytes(undisturbed):
    folder, _, _, _ = undisturbed
    report = folder / "out" / "report"
    before = {p.name: p.read_bytes() for p in report.iterdir()}
    here = Here()
    open_study(folder / "study.yaml", folder / "out", here, lambda text: None).run()
    assert here.made == []
    assert {p.name: p.read_bytes() for p in report.iterdir()} == before


def snapshot(root):
    return {p.relative_to(root): (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def test_an_arm_added_later_leaves_the_runs_of_the_others(undisturbed, tmp_path):
    folder, judged, _, _ = undisturbed
    text = STUDY.replace("claim_seeds", "  t: {norm_type: ibnorm-t}\nclaim_seeds")
    here = Here()
    before = snapshot(folder / "out" / "runs")
    again = open_study(write(folder, text), folder / "out", here, lambda text: None).run()
    write(folder)
    after = snapshot(folder / "out" / "runs")
    assert before and {name: after[name] for name in before} == before  # bytes and times
    assert len(here.made) == 10 and all(name.startswith("t-") for name in here.made)
    assert again["arms"]["l"]["difference"] == judged["arms"]["l"]["difference"]


def test_a_card_takes_its_place_beside_baselines_from_the_report(tmp_path):
    text = STUDY.replace("[1, 2, 3, 4, 5]", "[1, 2]").replace("budgets: [1, 2]", "budgets: [1]\nkeep_models: true")
    judged = open_study(write(tmp_path, text), tmp_path / "o", Here(), lambda text: None).run()
    run = next(entry for entry in judged["runs"] if entry["arm"] == "l" and entry["phase"] == "claim")
    assert len({entry["model_sha256"] for entry in judged["runs"]}) == 4 and None not in run.values()
    text = write_card(tmp_path / "o" / "runs" / run["run"]).read_text()
    assert f"Study `study`, arm `l`, budget 1x, seed {run['seed']}." in text
    assert "- l has 2 claim seeds at budget 1, fewer than 5." in text  # refused: no ranking


def test_a_run_of_a_study_that_kept_no_weights_is_made_anew_for_its_card(undisturbed, tmp_path):
    folder, judged, _, _ = undisturbed
    entry = next(entry for entry in judged["runs"] if (entry["arm"], entry["phase"]) == ("l", "claim"))
    comparison = open_study(folder / "study.yaml", folder / "out", Here(), lambda text: None)
    run = next(run for run in claims(comparison.study, {}) if comparison.folder_of(run).name == entry["run"])
    words = [*comparison.words(run), f"--output_dir={tmp_path / entry['run']}"]
    pretrain(load_recipe(str(comparison.study.base), words))
    text = write_card(tmp_path / entry["run"], study=folder / "out" / "report").read_text()
    assert f"Study `study`, arm `l`, budget 1x, seed {entry['seed']}." in text


def test_a_crashed_run_is_run_again_and_a_diverged_one_is_not(undisturbed):
    folder, _, made, _ = undisturbed
    run = folder / "out" / "runs" / made[-1]
    kept = (run / "eval" / "validation.json").read_bytes()
    assert state(run) == "done" and state(run.with_name("absent")) == "planned"
    (run / "eval" / "validation.json").unlink()
    assert state(run) == "crashed"
    (run / "diverged.json").write_text("{}")
    assert state(run) == "diverged"
    (run / "diverged.json").unlink()
    (run / "eval" / "validation.json").write_bytes(kept)


def test_a_rate_that_breaks_every_run_is_recorded_as_diverged(tmp_path):
    base = BASE.replace("learning_rate: 1.0e-2", "learning_rate: 1.0e+30").replace("max_steps: 4", "max_steps: 3")
    said = []
    study = STUDY.replace("[1, 2, 3, 4, 5]", "[1, 2]").replace("[1, 2]\n", "[1]\n", 1).replace("[1]\n", "[1, 2]\n", 1)
    comparison = open_study(
        write(tmp_path, study.replace("budgets: [1, 2]", "budgets: [1]"), base), tmp_path / "o", Here(), said.append
    )
    comparison.audits = []
    comparison.noise_floor()
    assert said[-1].startswith("noise floor: the baseline diverged")
    assert {state(p) for p in (tmp_path / "o" / "runs").iterdir() if p.is_dir()} == {"diverged"}


def test_the_grid_is_widened_for_all_arms(tmp_path):
    said = []
    comparison = open_study(write(tmp_path, STUDY + GRID), tmp_path / "o", Here(), said.append)
    comparison.check()
    rates = comparison.tune()
    made = {(row.arm, row.learning_rate) for row in comparison.rows(tuning(comparison.study, rates))}
    assert {rate for arm, rate in made if arm == "l"} == {rate for arm, rate in made if arm == "rmsnorm"} == set(rates)


def test_an_arm_with_other_sizes_is_refused(tmp_path):
    text = STUDY.replace("{norm_type: ibnorm-l}", "{norm_type: ibnorm-l, model: {hidden_size: 32}}")
    comparison = open_study(write(tmp_path, text), tmp_path / "o", Here(), lambda text: None)
    assert any("by more than their norms" in why for why in comparison.check())


def test_the_baseline_is_held_against_transformers_own_model(tmp_path, monkeypatch):
    comparison = open_study(write(tmp_path), tmp_path / "o", Here(), lambda text: None)
    assert comparison.check() == []
    words = "differ from transformers' own model"
    other = STUDY.replace("baseline: rmsnorm", "baseline: l")
    comparison = open_study(write(tmp_path, other + GRID), tmp_path / "o", Here(), lambda text: None)
    assert any(words in why for why in comparison.check())
    # A declared ablation may start from any norm, and says so.
    comparison = open_study(write(tmp_path, other), tmp_path / "o", Here(), lambda text: None)
    assert comparison.check() == [] and any("another norm" in line for line in comparison.about())
    # The architecture's own norm must be the architecture's own, also there.
    monkeypatch.setattr(RMSNorm, "forward", lambda self, x: 1.001 * torch.nn.functional.rms_norm(x, x.shape[-1:]))
    comparison = open_study(write(tmp_path), tmp_path / "o", Here(), lambda text: None)
    assert any(words in why for why in comparison.check())


def test_sizes_of_the_model_are_shared_and_may_be_lists(tmp_path):
    shared = "keys: {model: {hidden_size: 32, sizes: [1, 2]}, corpus: [a, b]}\narms:"
    text = STUDY.replace("arms:", shared).replace("ibnorm-l}", "ibnorm-l, model: {hidden_size: 64}}")
    study = read_definition(write(tmp_path, text))
    run = replace(noise_floor(study)[0], arm="l")
    words = as_words(overrides(study, run, {"max_steps": 4}))
    assert {"--model.hidden_size=64", "--model.sizes=[1, 2]"} <= set(words)
    at = words.index("--corpus")
    assert words[at + 1 : at + 3] == ["a", "b"]


def test_a_process_that_dies_costs_its_own_job_only(tmp_path):
    jobs = [Job("absent.yaml", [], str(tmp_path / name)) for name in ("a", "b")]
    ended = dict((Path(job.folder).name, why) for job, why in Local(processes=1).run(jobs))
    assert set(ended) == {"a", "b"} and all("does not exist" in why for why in ended.values())


def test_a_process_that_made_its_share_is_followed_by_another(tmp_path, monkeypatch):
    # More jobs than the processes may make before they are renewed, twice over.
    monkeypatch.setattr(executors, "_RUNS_A_PROCESS", 1)
    jobs = [Job("absent.yaml", [], str(tmp_path / name)) for name in "abc"]
    ended = [(Path(job.folder).name, why) for job, why in Local(processes=1).run(jobs)]
    assert [name for name, _ in ended] == ["a", "b", "c"] and all("does not exist" in str(why) for _, why in ended)


ENDLESS = """if __name__ == "__main__":
    import sys
    from ibnorm_hf.studies.executors import Local
    from ibnorm_hf.studies.runs import Job
    list(Local(processes=1).run([Job(sys.argv[1], ["--max_steps", "1000000", "--save_steps", "1000000"], sys.argv[2])]))
"""


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are counted in /proc")
def test_no_process_outlives_a_killed_study(tmp_path):
    write(tmp_path)
    (tmp_path / "endless.py").write_text(ENDLESS)
    words = [sys.executable, str(tmp_path / "endless.py"), str(tmp_path / "base.yaml"), str(tmp_path / "run")]
    study = subprocess.Popen(words, start_new_session=True)

    def alive() -> int:
        """How many processes of the study's own group there are, without those that are dead and not yet waited for."""
        found = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended just now
                status, _, group = path.read_text().rpartition(")")[2].split()[:3]
                found += int(group) == study.pid and status != "Z"
        return found

    limit = time.monotonic() + 240
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert study.poll() is None and time.monotonic() < limit
        time.sleep(0.2)
    assert alive() > 1 and state(tmp_path / "run") == "running"
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    limit = time.monotonic() + 60
    while alive():
        assert time.monotonic() < limit, "a run goes on without its study"
        time.sleep(0.2)
    assert state(tmp_path / "run") == "crashed"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("margin: 0.05", ""), "key margin is missing"),
        (("baseline: rmsnorm", "baseline: rms"), "must be one of the arms"),
        (("budgets", "budget"), "did you mean 'budgets'"),
        (("[1, 2, 3, 4, 5]", "[1, 1]"), "holds a seed twice"),
        (("claim_seeds: [1", "tuning_seeds: [1]\ngrid: {learning_rate: [1]}\nclaim_seeds: [1"), "share a seed"),
        (("base: base.yaml", "base: absent.yaml"), "does not exist"),
        (("{norm_type: ibnorm-l}", "{norm_type: ibnorm-l, seed: 3}"), "which the study decides"),
        (("{norm_type: ibnorm-l}", "ibnorm-l"), "gives l no mapping"),
        (("margin: 0.05", "margin: nan"), "give finite numbers"),
        (("claim_seeds", "tuning_seeds: [9]\nclaim_seeds"), "go together"),
    ],
)
def test_a_study_with_a_mistake_is_one_sentence(tmp_path, change, sentence, capsys):
    study = write(tmp_path, STUDY.replace(*change))
    with pytest.raises(UserError, match=sentence.replace("(", ".")):
        read_definition(study)
    assert main(["compare", str(study), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_of_the_noise_floor_is_the_claim_at_the_same_rate(tmp_path):
    comparison = open_study(write(tmp_path), tmp_path / "out", Here())
    floor = noise_floor(comparison.study)[0]
    own = comparison.recipe(floor).run.learning_rate
    claim = replace(floor, rate=(own, None), phase="claim")
    assert floor.label != claim.label and comparison.folder_of(floor) == comparison.folder_of(claim)
    assert comparison.folder_of(claim) != comparison.folder_of(replace(claim, rate=(2 * own, None)))


def test_the_samples_of_a_study_are_read_once_for_all_arms_and_budgets(tmp_path, monkeypatch):
    from ibnorm_hf.training import text_task

    read, real = [], text_task.prepare_data
    monkeypatch.setattr(text_task, "prepare_data", lambda *words, **keys: read.append(words) or real(*words, **keys))
    comparison = open_study(write(tmp_path), tmp_path / "out", Here(), lambda text: None)
    comparison.plan()
    assert comparison.check() == [] and len(comparison.audits) == 2
    folders = {comparison.folder_of(run) for run in noise_floor(comparison.study)}
    folders |= {comparison.folder_of(replace(run, budget=2)) for run in noise_floor(comparison.study)}
    assert len(folders) == 10 and len(read) == 1
    # Of a tokenizer with other rows the samples are others.
    other = replace(noise_floor(comparison.study)[0], arm="l")
    comparison.study.arms["l"].keys["model"] = {"vocab_size": 400}
    assert comparison.folder_of(other) not in folders and len(read) == 2
