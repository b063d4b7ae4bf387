# SPDX-License-Identifier: Apache-2.0
"""Cards come from a run's files: every figure is in one, and what is in none reads "not measured"."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries

from ibnorm_hf.cli import main
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.run import fingerprint
from ibnorm_hf.hub import card as cards
from ibnorm_hf.hub.card import write_card
from ibnorm_hf.hub.convert import convert
from ibnorm_hf.hub.export import export
from ibnorm_hf.hub.licence import terms_of
from ibnorm_hf.hub.norm_facts import norm_facts
from ibnorm_hf.modeling.create import list_norms

from .conftest import VALIDATION, write

ROOT = Path(__file__).parents[2]
SECTIONS = """How to load it|Normalization|Training data|Recipe and command|Results
Open LLM Leaderboard II|Hardware, versions, commit|Intended use and limits|Citation"""


def row(level, name, raw, score, mark=""):
    numbers = {"raw": raw, "stderr": 0.0123, "n": 198, "chance": 0.25, "score": score, "score_stderr": 1.5}
    return {"level": level, "benchmark": "GPQA", "name": name, "mark": mark, "note": "", **numbers}


def write_scores(run, content, model_sha256=None):
    """What `ibnorm-hf leaderboard RUN` writes: every entry with the digest of the weights it was measured with."""
    models = [{**entry, "model_sha256": model_sha256 or fingerprint([run / "model"])} for entry in content["models"]]
    write(run / "eval" / "leaderboard.json", {**content, "models": models})


LEADERBOARD = {
    "difference_to": "one",
    "models": [
        {
            "model": "one",
            "average": 7.77,
            "missing": [],
            "rows": [
                row("subtask", "leaderboard_gpqa_main", 0.3375, 11.67),
                row("subtask", "leaderboard_mmlu_pro", 0.2611, 3.33, "at chance"),
                row("benchmark", "GPQA", 0.3375, 11.67),
                row("average", "Average", 0.3, 7.77),
            ],
        }
    ],
}


def test_a_card_has_every_section_and_reads_back(run):
    assert main(["card", str(run)]) == 0
    path = run / "model" / "README.md"
    text = path.read_text()
    for title in re.split(r"[|\n]", SECTIONS):
        assert re.search(rf"^##+ {title}$", text, re.M), title
    for figure in ("4.125", "61.868", "1.653", "2,560", "seed | 7", "0123456789abcdef", "12" * 32, "torch 2.13.0+cpu"):
        assert figure in text, figure
    assert "recipes/pretrain.py recipes/llama/tiny.yaml" in text and "/home/somebody" not in text
    assert "trust_remote_code=True" in text and "import ibnorm_hf" in text
    assert "![Training and validation loss over steps](loss.png)" in text and (run / "model" / "loss.png").is_file()
    assert "tanh(u)" in text and "| 4 (the default of this variant) |" in text
    assert "Sourced from the paper" in text and "Reconstructed, since no code was released" in text
    metadata = metadata_load(path)
    assert "license" not in metadata and metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-generation" and metadata["tags"][0] == "ibnorm"
    results = {r.metric_type: r.metric_value for r in ModelCard.load(path).data.eval_results}
    assert results == {key: VALIDATION[key] for key in ("loss", "perplexity", "bits_per_byte")}
    assert not (run / "model" / ".eval_results").exists()  # nothing was measured on a data set of the Hub


def test_a_fine_tune_names_what_it_was_made_from(run):
    path = run / "config.yaml"
    recipe = yaml.safe_load(path.read_text())
    for name, base_model in (("owner/base", "owner/base"), ("/home/somebody/base", None)):
        path.write_text(yaml.safe_dump({**recipe, "pretrained": name}))
        card = ModelCard.load(write_card(run))
        assert card.data.license is None and card.data.base_model == base_model
        assert "whose licence goes on" in card.text and "/home/somebody" not in card.content


def test_the_same_files_give_the_same_card(run):
    first = write_card(run).read_bytes()
    assert write_card(run).read_bytes() == first


@pytest.mark.parametrize("absent", ["eval", "metrics.jsonl", "environment.json", "data.json", "loss.png"])
def test_what_was_not_measured_says_so(run, absent):
    whole = write_card(run).read_text()
    path = run / absent
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = write_card(run).read_text()
    assert text.count("not measured") > whole.count("not measured")
    if absent == "eval":
        assert "| validation loss | not measured |" in text and "model-index" not in text and "4.125" not in text
    if absent == "loss.png":
        assert "Loss curve: not measured." in text and "](loss.png)" not in text


def test_every_number_comes_from_a_file(run):
    """Change each number of the validation file: the card must follow, and no old one may stay."""
    changed = {k: v + 1 if isinstance(v, int | float) else v for k, v in VALIDATION.items()}
    write(run / "eval" / "validation.json", changed)
    text = write_card(run).read_text()
    for key in ("loss", "perplexity", "bits_per_byte"):
        assert f"{changed[key]:.6g}" in text and f"{VALIDATION[key]:.6g}" not in text


def test_leaderboard_is_shown_and_published_in_both_forms(run):
    write_scores(run, LEADERBOARD)
    text = write_card(run).read_text()
    assert "| GPQA | 11.67 | 0.3375 ± 0.0123 | 0.2500 | 198 |" in text and "| Average | 7.77 |" in text
    listed = yaml.safe_load((run / "model" / ".eval_results" / "leaderboard.yaml").read_text())
    entries = parse_eval_result_entries(listed)
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("Idavidrein/gpqa", "leaderboard_gpqa_main", 0.3375),
        ("TIGER-Lab/MMLU-Pro", "leaderboard_mmlu_pro", 0.2611),
    ]
    assert "chance 0.2500, stderr 0.0123, n 198" in entries[0].notes
    results = {(r.dataset_type, r.dataset_name): r.metric_value for r in ModelCard(text).data.eval_results}
    assert results["Idavidrein/gpqa", "leaderboard_gpqa_main"] == 0.3375
    exported = export(run, run.parent / "export")
    assert (exported / ".eval_results" / "leaderboard.yaml").is_file() and (exported / "README.md").is_file()


def test_a_partial_leaderboard_shows_subtasks_and_no_average(run):
    partial = json.loads(json.dumps(LEADERBOARD))
    model = partial["models"][0]
    model |= {"average": None, "missing": ["leaderboard_ifeval"], "rows": model["rows"][:2]}
    write_scores(run, partial)
    text = write_card(run).read_text()
    assert "| leaderboard_gpqa_main | 11.67 |" in text and "at chance" in text
    assert "Not measured, so there is no average: leaderboard_ifeval." in text


def test_what_is_no_full_measurement_says_so_and_is_not_published(run):
    """A part of the questions, other options, cut prompts: in the card with its remark, and in no metadata."""
    scores = json.loads(json.dumps(LEADERBOARD))
    model = scores["models"][0]
    model["remarks"] = ["results_1.json: --limit 2 asks a part of the questions only"]
    model["rows"][0] |= {
        "remark": "2 of 448 questions; 2 of 2 prompts cut (the longest to 216 of 342 tokens)",
        "full": False,
    }
    model["rows"][1] |= {"remark": "", "full": True}
    write_scores(run, scores)
    text = write_card(run).read_text()
    assert "Not the leaderboard's own measurement: results_1.json: --limit 2 asks" in text
    listed = yaml.safe_load((run / "model" / ".eval_results" / "leaderboard.yaml").read_text())
    assert [e.task_id for e in parse_eval_result_entries(listed)] == ["leaderboard_mmlu_pro"]
    assert not any(r.dataset_name == "leaderboard_gpqa_main" for r in ModelCard(text).data.eval_results)
    model |= {"average": None, "missing": ["leaderboard_ifeval"], "rows": model["rows"][:2]}
    write_scores(run, scores)
    assert (
        "| 2 of 448 questions; 2 of 2 prompts cut (the longest to 216 of 342 tokens) |" in write_card(run).read_text()
    )
    for row_ in model["rows"]:
        del row_["remark"], row_["full"]  # as earlier versions wrote it
    write_scores(run, scores)
    write_card(run)
    assert not (run / "model" / ".eval_results").exists()


def test_results_that_are_not_scored_are_not_called_unmeasured(run):
    write(run / "eval" / "results_0123.json", {"results": {}})
    text = write_card(run).read_text()
    assert "Evaluated, but there are no scores of these very weights yet" in text
    assert "Open LLM Leaderboard II: not measured" not in text


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("environment.json", "{", "environment.json is unreadable"),
        ("data.json", "[]", "data.json is not what it should be: a JSON object"),
        ("config.yaml", "a: [", "config.yaml, line 1: not valid YAML"),
        (
            "eval/leaderboard.json",
            '{"models": [3]}',
            "is not what `ibnorm-hf leaderboard",
        ),
        ("model/model.safetensors", "nonsense", "model.safetensors is damaged"),
    ],
)
def test_damaged_files_are_one_sentence(run, name, content, message, capsys):
    (run / name).write_text(content)
    assert main(["card", str(run)]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (run / "model" / "README.md").exists()


def test_a_sample_cannot_break_out_of_its_block(run):
    (run / "eval" / "sample.txt").write_text("```\n## Results\n{{ card_data }} /home/somebody/file.txt")
    text = write_card(run).read_text()
    assert text.count("\n## Results") == 1 and "    ## Results" in text and "{{ card_data }} file.txt" in text


def test_a_model_without_a_run_gets_a_card_without_numbers(run, tmp_path):
    model = shutil.copytree(run / "model", tmp_path / "converted")
    text = write_card(model).read_text()
    assert "| validation loss | not measured |" in text and "Training data: not measured." in text
    with pytest.raises(UserError, match="is no folder"):
        write_card(tmp_path / "nowhere")


def test_every_norm_has_its_facts():
    ibnorm = [name for name in list_norms() if name.startswith("ibnorm")]
    for name in list_norms():
        facts = norm_facts(name)
        assert facts.citation and bool(facts.formula) == bool(facts.confidence) == (name in ibnorm), name
    assert norm_facts("ibnorm-s").confidence.startswith("low")


def test_the_template_is_one_file_in_two_places():
    packaged = Path(cards.__file__).with_name("card_template.md")
    assert (ROOT / "model_cards" / "template.md").read_text() == packaged.read_text()


def test_committed_cards_read_back():
    for path in sorted(p for p in (ROOT / "model_cards").glob("*/README.md") if p.parent.name != "studies"):
        data = ModelCard.load(path).data
        assert data.eval_results and data.model_name and metadata_load(path)["model-index"], path
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / picture).is_file()


def test_scores_of_other_weights_are_never_shown(run):
    """Whatever its name says, and wherever it stands: a baseline listed first, or the model before it was retrained."""
    other = {"model": "one", "model_sha256": "ab" * 32, "average": 99.9, "missing": [], "rows": []}
    mine = {**LEADERBOARD["models"][0], "model": "another name", "model_sha256": fingerprint([run / "model"])}
    write(run / "eval" / "leaderboard.json", {"models": [other, mine]})
    assert "| Average | 7.77 |" in write_card(run).read_text()
    assert (run / "model" / ".eval_results").exists()
    write(run / "eval" / "leaderboard.json", {"models": [other, {**mine, "model_sha256": None}]})
    text = write_card(run).read_text()
    assert "7.77" not in text and "99.9" not in text and not (run / "model" / ".eval_results").exists()


def test_a_card_of_somebody_else_is_kept(run, capsys):
    folder = run / "model"  # as a model folder, which is not a run
    model = shutil.copytree(folder, run.parent / "downloaded")
    write(model / "README.md", "---\nlicense: other\nlicense_name: some-community\n---\n# theirs\n")
    write(model / ".eval_results" / "leaderboard.yaml", "theirs")
    assert main(["card", str(model)]) == 2
    assert "--force" in capsys.readouterr().err and "# theirs" in (model / "README.md").read_text()
    assert (model / ".eval_results" / "leaderboard.yaml").read_text() == "theirs"
    assert main(["card", str(model), "--force"]) == 0
    assert metadata_load(model / "README.md")["license_name"] == "some-community"
    assert "# theirs" in (model / "README.md.before").read_text()
    assert (model / ".eval_results.before" / "leaderboard.yaml").read_text() == "theirs"
    assert main(["card", str(model)]) == 0  # ours may be written anew


def test_the_licence_is_the_owners_word_or_the_bases(run, tmp_path):
    assert terms_of(run).line().startswith("licence: none is claimed")
    assert ModelCard.load(write_card(run, license="mit")).data.license == "mit"
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    write(run / "config.yaml", yaml.safe_dump({**recipe, "license": "cc-by-4.0"}))
    assert ModelCard.load(write_card(run)).data.license == "cc-by-4.0"
    with pytest.raises(UserError, match="no identifier"):
        terms_of(run, "My licence!")
    base = shutil.copytree(run / "model", tmp_path / "base")
    (base / "README.md").unlink()
    write(base / "README.md", "---\nlicense: other\nlicense_name: some\nlicense_link: LICENSE.txt\n---\n# base\n")
    for name in ("LICENSE.txt", "NOTICE", "Licence-model.md", "USE_POLICY.md"):
        write(base / name, f"{name} of the base")
    write(run / "config.yaml", yaml.safe_dump({**recipe, "license": "mit", "pretrained": str(base)}))
    data = ModelCard.load(write_card(run)).data
    assert (data.license, data.license_name, data.license_link) == ("other", "some", "LICENSE.txt")
    exported = export(run, tmp_path / "out")
    for name in ("LICENSE.txt", "NOTICE", "Licence-model.md", "USE_POLICY.md"):
        assert (exported / name).read_text() == f"{name} of the base"
    assert not (exported / "LICENSE").exists()
    done = convert(str(base), tmp_path / "converted", norm_type="rmsnorm")
    assert done.saved_as and (tmp_path / "converted" / "NOTICE").is_file()
    assert metadata_load(tmp_path / "converted" / "README.md")["license_name"] == "some"
    again = export(tmp_path / "converted", tmp_path / "again")
    assert metadata_load(again / "README.md")["license"] == "other" and (again / "LICENSE.txt").is_file()


def test_a_link_is_not_followed_into_what_is_published(run, tmp_path):
    write(tmp_path / "secret", "secret")
    for name in ("chat_template.jinja", "LICENSE", "tokenizer.json", "README.md"):
        path = run / "model" / name
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "secret")
        with pytest.raises(UserError, match="is a link"):
            export(run, tmp_path / "out")
        path.unlink()


def test_an_image_run_speaks_of_images(run):
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    write(run / "config.yaml", yaml.safe_dump({**recipe, "images": "digits"}))
    write(run / "eval" / "validation.json", {"loss": 1.5, "top1": 0.75, "images": 200, "images_seen": 640, "step": 20})
    write(run / "eval" / "robustness.json", {"corrupted_top1": 0.4321})
    write(run / "metrics.jsonl", '{"step": 10, "loss": 2.0, "images_per_s": 321.0}\n')
    text = write_card(run).read_text()
    assert "| validation loss (nats an image) | 1.5 |" in text and "a token" not in text.split("## Results")[1]
    assert "| images seen | 640 |" in text and "| training speed, images a second | 321 |" in text
    assert "| accuracy (top 1), mean over corruptions and severities | 0.4321 |" in text
