# SPDX-License-Identifier: Apache-2.0
"""A model card from a run's files alone: nothing can be typed in, and what was not measured says so."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import IMAGE_PROCESSOR_NAME

from .. import registration
from ..common import strict_json, strict_yaml
from ..common.corpus import corpus_label, corpus_names, corpus_sources
from ..common.errors import UserError
from ..common.run import CARD, EVAL_RESULTS, LOSS_CURVE, mean_speed
from ..modeling.compression import get_compression, list_compressions
from .baselines import beside_baselines
from .eval_results import entries, write_entries
from .facts import Facts, read_facts
from .norm_facts import norm_facts
from .processing import pictures
from .results import MEASURES, NOT_MEASURED, leaderboard_table, number

# How a class is loaded and what the Hub calls its task, by what its name ends in.
_TASKS = (
    ("ForCausalLM", "AutoModelForCausalLM", "text-generation"),
    ("LMHeadModel", "AutoModelForCausalLM", "text-generation"),
    ("ForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "AutoModelForQuestionAnswering", "question-answering"),
    ("ForImageClassification", "AutoModelForImageClassification", "image-classification"),
    ("", "AutoModel", "feature-extraction"),
)
_OURS = "by `ibnorm_hf`"  # stands in every card that this program wrote
_EMBEDDED = (
    "English prose from the docstrings of Python packages (the embedded corpus of `ibnorm_hf`): technical, about "
    "software, different with the versions installed. The text stays under its authors' licences and is not "
    "distributed with this model."
)
_SEVERAL = {
    False: "{count} sources, one after another.",
    True: "A mixture of {count} sources, drawn document by document so that training tokens keep the shares below.",
}


def write_card(
    source: str | Path,
    *,
    target: Path | None = None,
    model_id: str | None = None,
    license: str | None = None,
    force: bool = True,
    study: Path | None = None,
) -> Path:
    """Write README.md, the loss curve's picture and ``.eval_results`` beside the weights.

    Args:
        source: a run folder, or a model folder, whose card then has little to say.
        target: another folder to write to; where the source holds a PEFT adapter, its export.
        model_id: how the loading examples name the model; the run's name by default.
        license: what the owner names, where no base says otherwise.
        force: replace a card that is not this program's; what stood there is kept beside it as ``*.before``.
        study: the study (folder or report.json) that made the run, where it does not stand in its folder.

    Raises:
        UserError: there is no finished model, one of the run's files cannot be read, or the study is another's.
    """
    facts = read_facts(source, merged=target, license=license, study=study)
    target = facts.model if target is None else target
    target.mkdir(parents=True, exist_ok=True)
    _keep_foreign(target, force=force)
    if facts.loss_curve is not None:
        shutil.copyfile(facts.loss_curve, target / LOSS_CURVE)
    make_card(facts, model_id or facts.name).save(target / CARD)
    write_entries(facts, target / EVAL_RESULTS)
    return target / CARD


def _keep_foreign(target: Path, *, force: bool) -> None:
    """Move a card that is not ours aside, with its results; raises UserError without ``force``."""
    card = target / CARD
    if not card.exists() or _OURS in strict_json.read_text(card):
        return
    if not force:
        raise UserError(
            f"{card} was not written by this program, and may hold another licence; keep it, or give --force: what "
            "stands there is then kept as *.before"
        )
    for path in (card, target / EVAL_RESULTS):
        aside = path.with_name(f"{path.name}.before")
        if path.exists() and not aside.exists():
            path.rename(aside)


def make_card(facts: Facts, model_id: str) -> ModelCard:
    """The card as huggingface_hub's object, metadata checked by it."""
    template = resources.files(__package__).joinpath("card_template.md").read_text(encoding="utf-8")
    return ModelCard.from_template(_metadata(facts), template_str=template, **_sections(facts, model_id))


def _task(facts: Facts) -> tuple[str, str]:
    name = (facts.config.get("architectures") or [""])[0]
    return next((auto, task) for ending, auto, task in _TASKS if name.endswith(ending))


def _metadata(facts: Facts) -> ModelCardData:
    hub = [one["name"] for one in _sources(facts) if one.get("kind") == "hub"]
    results = entries(facts, _task(facts)[1])
    embedded = corpus_names(facts.recipe.get("corpus")) == ["embedded"]
    norm = facts.config.get("norm_type")
    return ModelCardData(
        model_name=facts.name if results else None,
        eval_results=results or None,
        language="en" if embedded else None,
        license=facts.terms.metadata.get("license"),
        license_name=facts.terms.metadata.get("license_name"),
        license_link=facts.terms.metadata.get("license_link"),
        base_model=facts.terms.base_model,
        library_name="transformers",
        pipeline_tag=_task(facts)[1],
        # A vanilla baseline is no IBNorm model, and must not be found as one.
        tags=[*(["ibnorm", norm] if norm else []), str(facts.config.get("model_type"))],
        datasets=sorted(set(hub)) or None,
        metrics=sorted({r.metric_type for r in results}) or None,
    )


def _sections(facts: Facts, model_id: str) -> dict[str, Any]:
    model_type = str(facts.config.get("model_type"))
    ours = model_type in {config.model_type for config in registration._MODELS}
    norm = _norm(facts)
    recipe = strict_yaml.dumps(facts.recipe).strip() if facts.recipe else NOT_MEASURED
    return {
        "name": facts.name,
        "model_id": model_id,
        "summary": f"A `{model_type}` model of {facts.parameters:,} parameters with {norm['label']}, by `ibnorm_hf`."
        + (f" Made from `{facts.base}`, whose licence goes on." if facts.base else ""),
        "overview": _overview(facts),
        "auto_class": _task(facts)[0],
        "import_ours": ours,
        "loads": [_task(facts)[0], *_processing(facts.model)],
        "pictures": pictures(facts.model) if facts.unit == "image" or _task(facts)[1] == "image-classification" else "",
        "norm": norm,
        "data": _data(facts),
        "command": " ".join(facts.environment.get("command", [])) or NOT_MEASURED,
        "recipe": recipe,
        "loss_curve": LOSS_CURVE if facts.loss_curve else None,
        "results": _results(facts),
        "seeds": _seeds(facts),
        "sample": facts.sample,
        "baselines": beside_baselines(facts.study),
        "leaderboard": leaderboard_table(facts),
        "environment": _environment(facts),
        "limits": _limits(facts),
        "citation": norm["citation"],
    }


def _processing(model: Path) -> list[str]:
    """The Auto classes of what stands beside the weights."""
    there = {"AutoTokenizer": "tokenizer_config.json", "AutoImageProcessor": IMAGE_PROCESSOR_NAME}
    return [auto for auto, name in there.items() if (model / name).is_file()]


def _overview(facts: Facts) -> list[tuple[str, Any]]:
    get = facts.config.get
    return [
        ("architecture", (get("architectures") or [NOT_MEASURED])[0]),
        ("parameters", f"{facts.parameters:,}"),
        ("normalization", get("norm_type") or "the architecture's own"),
        ("steps", _steps(facts)),
        (f"{facts.unit}s seen", number(facts.validation.get(f"{facts.unit}s_seen"))),
        ("seed", facts.environment.get("seed", NOT_MEASURED)),
    ]


def _steps(facts: Facts) -> str:
    early = facts.validation.get("stopped_early")
    taken = number(facts.validation.get("step"))
    if not early:
        return taken
    asked = number(facts.recipe.get("max_steps"))
    best, patience = early.get("best_step"), early.get("patience")
    return f"{taken} of {asked}: stopped early, no better validation in {patience} after step {best}"


def _norm(facts: Facts) -> dict[str, str]:
    name = facts.config.get("norm_type")
    known = norm_facts(name)
    scale = facts.config.get("norm_lambda")
    default = get_compression(name).default_lambda if name in list_compressions() else None
    return {
        "label": name or "its own normalization",
        "text": known.text,
        "formula": known.formula,
        "confidence": known.confidence,
        "citation": known.citation or norm_facts("ibnorm-l").citation,
        "scale": f"{default:g} (the default of this variant)" if scale is None and default else str(scale),
        "order": str(facts.config.get("norm_order", "compress-first")),
        "share": _share(facts),
        "likeness": _likeness(facts),
    }


def _share(facts: Facts) -> str:
    for line in reversed(facts.metrics):
        shares = line.get("share_over_lambda")
        if shares:
            low, high = min(shares.values()), max(shares.values())
            return f"{low:.2%} to {high:.2%} over the {len(shares)} layers, at step {line.get('step')}"
    return NOT_MEASURED


def _likeness(facts: Facts) -> str:
    """How far the norms' outputs are from LayerNorm's, and where that is nothing."""
    found = facts.norms.get("largest_difference_to_layernorm")
    if not isinstance(found, dict) or not found or not all(isinstance(v, (int, float)) for v in found.values()):
        return NOT_MEASURED
    alike, where = facts.norms.get("layernorm_in_all_but_name") or [], facts.norms.get("measured_on")
    text = f"{min(found.values()):.2g} to {max(found.values()):.2g} over the {len(found)} layers, on {where}"
    return text + (f"; {len(alike)} of them are LayerNorms in all but name: lambda does nothing there" if alike else "")


def _data(facts: Facts) -> dict[str, Any]:
    corpus = facts.data.get("corpus", {})
    if corpus_names(facts.recipe.get("corpus")) == ["embedded"]:
        text = _EMBEDDED
    elif "sources" in corpus:
        text = _SEVERAL[corpus.get("kind") == "mixture"].format(count=len(corpus_sources(corpus)))
    elif corpus.get("kind") == "hub":
        text = f"Data set [`{corpus['name']}`](https://huggingface.co/datasets/{corpus['name']}) of the Hub."
    elif corpus:
        text = "Files of the person who trained it, not published with the model; their licence and content are theirs."
    else:
        text = f"Training data: {NOT_MEASURED}."
    train, validation = facts.data.get("train", {}), facts.data.get("validation", {})
    if facts.unit == "image":
        return {"text": text, "rows": _image_rows(facts)}
    hidden = ("path", "kind", "sources")
    rows = [(k.replace("_", " "), number(v)) for k, v in corpus.items() if v is not None and k not in hidden]
    rows += _source_rows(corpus)
    if (own := facts.recipe.get("validation_corpus")) is not None:
        rows.append(("validation text", corpus_label(own)))
    rows += [
        ("documents", number(facts.data.get("documents"))),
        ("training tokens", number(train.get("tokens"))),
        ("bytes a token", number(train.get("bytes_per_token"))),
        (f"validation tokens, {'of its own text' if own else 'held out'}", number(validation.get("tokens"))),
        ("SHA-256 of the validation set", validation.get("sha256", NOT_MEASURED)),
    ]
    return {"text": text, "rows": rows}


def _sources(facts: Facts) -> list[dict[str, Any]]:
    """Every source of the training and of the validation text."""
    data: dict[str, Any] = {**facts.data}
    return [one for key in ("corpus", "validation_corpus") for one in corpus_sources(data.get(key))]


def _source_rows(corpus: Any) -> list[tuple[str, str]]:
    """A row a source of a list or mixture: what was really taken of it."""
    if "sources" not in corpus:
        return []
    sources = corpus_sources(corpus)
    whole = sum(one.get("training_tokens") or 0 for one in sources)
    rows = []
    for one in sources:
        taken = one.get("training_tokens")
        words = [f"{number(one.get('documents'))} documents", f"{number(taken)} training tokens"]
        if taken is not None and whole:
            asked = f", {one['share']:.2%} asked" if isinstance(one.get("share"), float) else ""
            words.append(f"{taken / whole:.2%} of them{asked}")
        words += [f"read {one['passes']} times to its end"] if (one.get("passes") or 0) > 1 else []
        words += [f"commit {one['commit']}"] if one.get("commit") else []
        rows.append((f"source `{one.get('name', 'unknown')}`", ", ".join(words)))
    return rows


def _image_rows(facts: Facts) -> list[tuple[str, str]]:
    part = {name: facts.data.get(name, {}).get("images") for name in ("train", "validation")}  # type: ignore[attr-defined]
    return [
        ("classes", number(facts.config.get("num_labels") or len(facts.data.get("classes", [])) or None)),
        ("training images", number(part["train"])),
        ("validation images, held out", number(part["validation"])),
        ("SHA-256 of the images", facts.data.get("fingerprints", {}).get("images", NOT_MEASURED)),
    ]


def _results(facts: Facts) -> list[tuple[str, str]]:
    each = "an image" if facts.unit == "image" else "a token"
    labels = {key: label.replace("a token", each) for key, label in MEASURES.items()}
    rows = [(label, number(facts.validation.get(key))) for key, label in labels.items() if key in facts.validation]
    rows = rows or [("validation loss", NOT_MEASURED)]
    lines: list[Any] = list(facts.metrics)
    speed = mean_speed(facts.metrics, f"{facts.unit}s")
    mean = NOT_MEASURED if speed is None else f"{speed:,.0f}"
    if (kept := facts.robustness.get("corrupted_top1")) is not None:
        rows.append(("accuracy (top 1), mean over corruptions and severities", number(kept)))
    rows.append((f"training speed, {facts.unit}s a second", mean))
    timed = next((line for line in reversed(lines) if "seconds" in line), None)
    spent = [number(round(timed[key], 1)) if timed else NOT_MEASURED for key in ("seconds", "core_seconds")]
    return [*rows, ("wall time of training, s", spent[0]), ("core-seconds of the main process", spent[1])]


def _seeds(facts: Facts) -> str:
    if not facts.validation:
        return f"Spread over seeds: {NOT_MEASURED}."
    if facts.study is not None:
        return "One run of one seed; what other seeds make of its arm stands beside baselines."
    return (
        "One run of one seed: spread over seeds not measured, so a difference to another run of about the same size "
        "means nothing."
    )


def _environment(facts: Facts) -> list[tuple[str, str]]:
    hardware, versions = facts.environment.get("hardware", {}), facts.environment.get("versions", {})
    machine = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in hardware.items() if v) or NOT_MEASURED
    installed = ", ".join(f"{k} {v}" for k, v in versions.items() if v) or NOT_MEASURED
    return [
        ("hardware", machine),
        ("processes", facts.environment.get("processes", NOT_MEASURED)),
        ("versions", installed),
        ("commit", facts.environment.get("commit") or NOT_MEASURED),
    ]


def _limits(facts: Facts) -> str:
    lines = [
        "Made for research on normalization: to compare layers, to reproduce the numbers above, to test software. "
        "Not made for use in products, and no filter or alignment was applied."
    ]
    tokens = facts.validation.get("tokens_seen")
    if tokens is not None and facts.parameters and not facts.base and tokens < 20 * facts.parameters:
        lines.append(
            f"It saw {tokens / facts.parameters:.2g} tokens a parameter, far below what language models of its size "
            "are usually given: its text is not to be relied on."
        )
    if corpus_names(facts.recipe.get("corpus")) == ["embedded"]:
        lines.append("Its text is technical English about software; scores on it say little about other text.")
    return "\n\n".join(lines)
