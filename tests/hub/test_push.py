# SPDX-License-Identifier: Apache-2.0
"""Pushes by the real client over HTTP to a small Hub on loopback, faults included."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import _http

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.hub.push import push
from ibnorm_hf.hub.scrub import require_publishable, scrub

from .server import TOKEN, Fault, Hub, Repo

# The client's own way of sending a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

LOAD = """
import os, sys
if "--without" in sys.argv:
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "ibnorm_hf":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Absent())
    options = {"trust_remote_code": True}
else:
    import ibnorm_hf
    options = {}
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from huggingface_hub import ModelCard
model = AutoModelForCausalLM.from_pretrained("me/one", **options).eval()
tokenizer = AutoTokenizer.from_pretrained("me/one", **options)
ids = torch.tensor([tokenizer("w1 w2 w3 w4")["input_ids"]])
print(type(model).__module__.split(".")[0], model(ids).logits.double().sum().item())
print(ModelCard.load("me/one").data.eval_results[0].metric_value)
"""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    # Objects go by plain LFS: the other way in, Xet, is a service and a binary of its own.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))
    with Hub() as hub:
        yield hub


def upload(hub, run, repo_id="one", **arguments):
    return push(run, repo_id, endpoint=hub.url, say=lambda line: None, **{"max_shard_size": "8KB", **arguments})


def broken(hub, run, **arguments):
    """Push where it must fail; the repository must be as before."""
    before = {name: list(repo.commits) for name, repo in hub.repos.items()}
    with pytest.raises(UserError) as caught:
        upload(hub, run, **arguments)
    after = {name: repo.commits for name, repo in hub.repos.items()}
    assert all(after[name] == commits for name, commits in before.items())
    assert all(len(repo.commits) == 1 for name, repo in hub.repos.items() if name not in before)
    message = str(caught.value)
    assert TOKEN not in message and "\n" not in message
    return caught.value


def test_one_commit_and_then_none(hub, run):
    first = upload(hub, run)
    assert first.repo_id == "me/one" and first.commit == hub.repos["me/one"].head
    repo = hub.repos["me/one"]
    assert len(repo.commits) == 2 and repo.private and hub.count("commit") == 1
    files = repo.files()
    assert set(files) == set(first.files)
    assert {"README.md", "checksums.json", "loss.png", "tokenizer.json", "norms.py"} <= set(files)
    assert not [name for name in files if name.endswith((".pt", ".bin")) or "optimizer" in name or "checkpoint" in name]
    for name, content in files.items():
        assert TOKEN.encode() not in content and b"/home/somebody" not in content, name
    assert hub.count("upload") == len([n for n in files if n.endswith((".safetensors", ".png"))])
    again = upload(hub, run)
    assert again.commit is None and len(repo.commits) == 2
    assert hub.count("commit") == 0 and hub.count("upload") == 0


def test_a_changed_run_replaces_its_files_and_drops_what_is_superseded(hub, run):
    upload(hub, run)
    repo = hub.repos["me/one"]
    repo.commits.append(("f" * 40, repo.files() | {"notes.txt": b"somebody's own"}))
    assert "model.safetensors.index.json" in repo.files()
    second = upload(hub, run, max_shard_size="5GB")
    weights = {name for name in repo.files() if "safetensors" in name}
    assert weights == {"model.safetensors"} and repo.files()["notes.txt"] == b"somebody's own"
    assert len(repo.commits) == 4 and second.commit == repo.head


def test_what_is_published_loads_with_and_without_this_package(hub, run, tmp_path):
    upload(hub, run, private=True)
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "IBNORM_BACKEND": "eager"}
    outputs = []
    for way in ("--with", "--without"):
        home = {"HF_HOME": str(tmp_path / way), "HF_MODULES_CACHE": str(tmp_path / way / "modules")}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, way], env=environment | home, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert TOKEN not in done.stdout + done.stderr
        outputs.append(done.stdout.split())
    assert outputs[0][0] == "ibnorm_hf" and outputs[1][0] == "transformers_modules"
    assert outputs[0][1:] == outputs[1][1:] and float(outputs[0][2]) == 4.125


# ---- faults ------------------------------------------------------------------------------------------------------


def test_a_cut_in_the_middle_of_an_upload_publishes_nothing_and_resumes(hub, run):
    # Every attempt from the third on is cut after half of its bytes.
    hub.faults["upload"] = Fault(cut=True, skip=2, times=1000)
    error = broken(hub, run)
    assert error.exit_code == 1 and "broke off" in str(error) and "run the same command again" in str(error)
    assert hub.count("commit") == 0
    arrived = len(hub.objects)
    assert arrived >= 1
    hub.faults.clear()
    hub.count("upload")
    done = upload(hub, run)
    large = [name for name in done.files if name.endswith((".safetensors", ".png"))]
    assert hub.count("upload") == len(large) - arrived
    assert len(hub.repos["me/one"].commits) == 2


def test_one_cut_is_retried_within_the_push(hub, run):
    hub.faults["upload"] = Fault(cut=True, times=1)
    assert upload(hub, run).commit == hub.repos["me/one"].head


ROUTES = ("create", "preupload", "batch", "upload", "verify", "commit")


@pytest.mark.parametrize(
    # 409 to a creation is the Hub's word for a repository that is there already.
    "route, status",
    [(r, s) for r in ROUTES for s in (401, 409, 500) if (r, s) != ("create", 409)],
)
def test_refusals_publish_nothing_and_the_next_push_works(hub, run, route, status):
    hub.faults[route] = Fault(status=status, times=1000)
    error = broken(hub, run)
    expected = {401: "does not accept the access token", 409: "was changed by somebody else", 500: "broke off"}
    assert expected[status] in str(error) and error.exit_code == (2 if status == 401 else 1)
    hub.faults.clear()
    assert upload(hub, run).commit is not None
    assert len(hub.repos["me/one"].commits) == 2


def test_a_commit_that_was_cut_is_not_made_twice(hub, run, monkeypatch):
    """The Hub commits, but its answer is lost: the same command then finds nothing to do."""
    made = hub.commit

    def commit(repo, lines):
        made(repo, lines)
        return 500

    monkeypatch.setattr(hub, "commit", commit)
    with pytest.raises(UserError, match="broke off"):
        upload(hub, run)
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert upload(hub, run).commit is None and len(hub.repos["me/one"].commits) == 2


def test_somebody_elses_commit_in_between_is_not_overwritten(hub, run):
    upload(hub, run)
    repo = hub.repos["me/one"]
    hub.faults["preupload"] = Fault(delay=1.0)
    (run / "eval" / "sample.txt").write_text("another sample")

    def meddle():
        deadline = time.monotonic() + 20
        while not hub.requests.get("preupload") and time.monotonic() < deadline:
            time.sleep(0.001)
        repo.commits.append(("f" * 40, repo.files() | {"README.md": b"theirs"}))

    hub.count("preupload")
    other = threading.Thread(target=meddle)
    other.start()
    with pytest.raises(UserError, match="was changed by somebody else meanwhile") as caught:
        upload(hub, run)
    other.join()
    assert caught.value.exit_code == 1 and repo.files()["README.md"] == b"theirs"


def test_a_slow_hub_is_waited_for_and_an_absent_one_is_one_sentence(hub, run):
    hub.faults["commit"] = Fault(delay=1.5)
    hub.faults["upload"] = Fault(delay=0.5, times=3)
    assert upload(hub, run).commit == hub.repos["me/one"].head
    with pytest.raises(UserError, match="broke off") as caught:
        push(run, "me/one", endpoint="http://127.0.0.1:9", say=lambda line: None)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1


# ---- tokens, visibility, mistakes --------------------------------------------------------------------------------


def test_a_missing_and_a_wrong_token_are_one_sentence(hub, run, monkeypatch):
    wrong = TOKEN[:-3] + "xyz"
    with pytest.raises(UserError, match="does not accept the access token") as caught:
        upload(hub, run, repo_id="me/one", token=wrong)
    assert wrong not in str(caught.value) and not hub.repos
    hub.requests.clear()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(UserError, match="there is no access token; run `hf auth login`") as caught:
        upload(hub, run)
    assert caught.value.exit_code == 2 and not hub.requests


def test_the_token_is_in_no_log_and_no_file(hub, run, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        upload(hub, run)
        hub.faults["commit"] = Fault(status=500)
        (run / "eval" / "sample.txt").write_text("another sample")
        broken(hub, run)
    said = capfd.readouterr()
    assert TOKEN not in caplog.text + said.out + said.err
    assert not [p for p in run.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


@pytest.mark.parametrize("private, there", [(True, False), (False, True)])
def test_a_repository_of_the_other_visibility_is_not_pushed_to(hub, run, private, there):
    hub.repos["me/one"] = Repo(private=there)
    assert "change it in its settings" in str(broken(hub, run, private=private))
    assert upload(hub, run).commit is not None  # nothing asked: the owner's choice stands


def test_a_new_repository_is_public_only_when_asked(hub, run):
    upload(hub, run, private=False)
    assert not hub.repos["me/one"].private


def test_dry_run_needs_neither_token_nor_network(run, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(_http, "get_session", lambda: pytest.fail("the network was touched"))
    before = sorted(run.rglob("*"))
    assert main(["push", str(run), "--repo_id", "me/one", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors" in out and "README.md" in out and "optimizer" not in out
    assert sorted(run.rglob("*")) == before


def test_a_bad_name_and_an_unfinished_run_are_refused_before_the_network(hub, run, capsys):
    assert main(["push", str(run), "--repo_id", "a/b/c"]) == 2
    assert capsys.readouterr().err.startswith("error: repo_id 'a/b/c' is not valid")
    (run / "model" / "config.json").unlink()
    assert main(["push", str(run), "--repo_id", "one"]) == 2
    assert "is not finished" in capsys.readouterr().err and not hub.requests


def test_secrets_state_and_local_paths_stop_an_upload(run, tmp_path, hub):
    folder = tmp_path / "upload"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    require_publishable(folder, secrets=("s3cret",), places=(tmp_path,))
    for name, content, message in (
        ("optimizer.safetensors", "x", "training state"),
        ("model.pt", "x", "pickles"),
        ("training_args.bin", "x", "pickles"),
        ("a.txt", f"see {TOKEN}", "access token"),
        ("b.json", '"s3cret"', "access token"),
        ("c.yaml", f"data: {tmp_path}/corpus.txt", "path of a local folder"),
    ):
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=f"{name} is not published: .*{message}"):
            require_publishable(folder, secrets=("s3cret",), places=(tmp_path,))
        (folder / name).unlink()
    # And the real push: a token that a user wrote into the recipe, or into a file that goes as it is.
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(recipe | {"note": TOKEN}))
    (run / "model" / "chat_template.jinja").write_text(TOKEN)
    assert "chat_template.jinja is not published" in str(broken(hub, run)) and not hub.repos
    (run / "model" / "chat_template.jinja").unlink()
    push(run, "me/clean", endpoint=hub.url, say=lambda line: None)
    contents = list(hub.repos["me/clean"].files().values())
    assert not any(TOKEN.encode() in content for content in contents)
    assert any(b"note: <hidden>" in content for content in contents)


@pytest.mark.parametrize(
    "text, clean",
    [
        ("/home/me/project/recipes/llama/tiny.yaml", "recipes/llama/tiny.yaml"),
        ("--output_dir=/home/me/runs/one", "--output_dir=one"),
        ("~/runs/one and C:\\Users\\me\\run", "one and run"),
        (
            "https://huggingface.co/a/b arXiv:2510.25262 and/or 1/2",
            "https://huggingface.co/a/b arXiv:2510.25262 and/or 1/2",
        ),
        ("allenai/c4", "allenai/c4"),
    ],
)
def test_local_paths_are_cut(text, clean):
    assert scrub({"x": [text]}) == {"x": [clean]}
    assert json.dumps(scrub(3)) == "3"


def test_a_recipe_with_push_to_hub_publishes_its_finished_run(hub, run, monkeypatch, capsys):
    from ibnorm_hf import training
    from ibnorm_hf.hub import push as push_module
    from ibnorm_hf.training.job import Result

    done = Result(run, {"loss": 1.0, "perplexity": 2.7, "bits_per_byte": 1.4}, None, "a sample")
    recipes = []
    monkeypatch.setattr(training.job, "pretrain", lambda recipe: recipes.append(recipe) or done)
    for name in ("push", "require_access"):
        monkeypatch.setattr(push_module, name, partial(getattr(push_module, name), endpoint=hub.url))
    recipe = Path(__file__).parents[2] / "recipes" / "llama" / "tiny.yaml"
    keys = ["--push_to_hub", "true", "--hub_model_id", "me/one", "--hub_private_repo", "true"]
    assert main(["pretrain", str(recipe), *keys]) == 0
    assert recipes[0].run.push_to_hub is False  # Trainer would push checkpoints by itself
    assert len(hub.repos["me/one"].commits) == 2 and hub.repos["me/one"].private
    assert "model.safetensors" in " ".join(hub.repos["me/one"].files())


@pytest.mark.parametrize("more", [[], ["--dry_run"]])
def test_a_run_that_could_not_be_published_does_not_begin(more, monkeypatch, tmp_path, capsys):
    from ibnorm_hf.training import job

    monkeypatch.setattr("ibnorm_hf.hub.push.get_token", lambda: None)
    for name in ("pretrain", "print_plan"):
        monkeypatch.setattr(job, name, lambda recipe: pytest.fail("began"))
    keys = ["--output_dir", str(tmp_path / "out"), "--push_to_hub", "true", "--hub_model_id", "me/one"]
    recipe = Path(__file__).parents[2] / "recipes" / "llama" / "tiny.yaml"
    assert main(["pretrain", str(recipe), *keys, *more]) == 2
    assert "there is no access token" in capsys.readouterr().err


def test_a_converted_model_is_pushed_by_transformers_own_method(hub, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "tests.hub.push_converted"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    other, known = done.stdout.strip().splitlines()[-2:]
    assert other.endswith("load it by ibnorm_hf.load_swapped")
    assert known.startswith("me/known holds a ibnorm_llama, whose norms a LlamaForCausalLM has not")
