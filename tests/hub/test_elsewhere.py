# SPDX-License-Identifier: Apache-2.0
"""Exports of every registered architecture and head, used where ibnorm_hf is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ibnorm_hf import IBNormImageProcessor, replace_norms
from ibnorm_hf.hub.export import export
from ibnorm_hf.modeling.rivals import __name__ as HOME
from ibnorm_hf.modeling.specs import SPECS

from ..foreign import FOREIGN
from .models import build, heads, sizes

SCRIPT = Path(__file__).with_name("elsewhere.py")


def inputs_for(model):
    torch.manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 8, 8)}
    choices = (3,) if type(model).__name__.endswith("ForMultipleChoice") else ()
    return {"input_ids": torch.randint(1, 64, (2, *choices, 7))}


def run_jobs(folder, jobs, *arguments, **variables):
    (folder / "jobs.json").write_text(json.dumps(jobs))
    # As many threads as here: sums split otherwise round otherwise.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = (
        os.environ | threads | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1", **variables}
    )
    command = [sys.executable, str(SCRIPT), str(folder / "jobs.json"), str(folder / "answers.json"), *arguments]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


def make_job(folder, config_class, auto, cls, **flags):
    model = build(config_class, cls, **flags)
    name = "_".join((cls.__name__, auto.__name__, *map(str, flags.values())))
    model.save_pretrained(folder / "model" / name)
    save_file(inputs_for(model), folder / f"{name}.input")
    job = {}
    if model.main_input_name == "pixel_values":
        sides = {"height": 8, "width": 8}
        IBNormImageProcessor(size={"height": 10, "width": 10}, crop_size=sides).save_pretrained(folder / "model" / name)
        job["picture"] = str(folder / f"{name}.png")
        noise = np.random.default_rng(0).integers(0, 255, (13, 21, 3), dtype=np.uint8)
        Image.fromarray(noise).save(job["picture"])
    exported = export(folder / "model" / name, folder / "export" / name, max_shard_size="4KB")
    # An export of the export is what is used: nothing may be lost on the way.
    exported = export(exported, folder / "export_of_export" / name)
    return job | {"auto": auto.__name__, "folder": str(exported), "input": str(folder / f"{name}.input")}, model


def not_exported(folder):
    """Swapped models as ``save_pretrained`` leaves them: one of a family, one of a host that no family knows."""
    for name in ("llama", FOREIGN):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**sizes("ibnorm_llama")))
        refused_by = ["AutoModelForCausalLM", type(model).__name__]
        replace_norms(model, "ibnorm-l")
        model.save_pretrained(folder / name)
        yield {"auto": "AutoModelForCausalLM", "folder": str(folder / name), "refused_by": refused_by}


def expected(job, model):
    inputs = {k: v if k == "pixel_values" else v.long() for k, v in load_file(job["input"]).items()}
    with torch.no_grad():
        out = {k: v for k, v in model(**inputs).items() if torch.is_tensor(v)}
    if job["auto"] == "AutoModelForCausalLM":
        out["generated"] = model.generate(inputs["input_ids"], max_new_tokens=5, do_sample=False)
    return out


def test_every_head_loads_elsewhere_trains_and_saves_again(tmp_path):
    made = []
    for config_class, auto, cls in heads():
        job, model = make_job(tmp_path, config_class, auto, cls)
        job |= {"again": str(tmp_path / "again" / Path(job["folder"]).name), "output": job["input"] + ".absent"}
        made.append((job, model, cls))
    assert {type(model.config) for _, model, _ in made} == {config_class for config_class, _, _ in heads()}
    answers = run_jobs(tmp_path, [job for job, _, _ in made])
    with_us = [{k: v for k, v in job.items() if k != "again"} | {"output": job["input"] + ".with"} for job, *_ in made]
    answers_with_us = run_jobs(tmp_path, with_us, "--with_ibnorm_hf")
    for (job, model, cls), other, answer, own in zip(made, with_us, answers, answers_with_us, strict=True):
        assert answer["class"] == own["class"] == cls.__name__
        assert answer["module"].startswith("transformers_modules.") and own["module"].startswith("ibnorm_hf.")
        there, here = load_file(job["output"]), load_file(other["output"])
        for name, tensor in expected(job, model).items():
            assert torch.equal(there[name], here[name]) and torch.equal(there[name], tensor), (cls.__name__, name)
        if "picture" in job:
            pixels = IBNormImageProcessor.from_pretrained(job["folder"])(
                job["picture"], return_tensors="pt"
            ).pixel_values
            assert answer["pixels"]["found"] == own["pixels"]["found"] == [pixels.flatten().tolist()] * 2
            with torch.no_grad():
                logits = dict(zip(model.config.id2label.values(), model(pixels).logits[0].tolist(), strict=True))
            assert answer["pixels"]["logits"] == own["pixels"]["logits"] == pytest.approx(logits, abs=1e-6)
        assert answer["moved"] > 1e-3 and answer["second_generation"], cls.__name__


def test_rivals_and_flags_load_elsewhere(tmp_path):
    config_class, auto, cls = next(head for head in heads() if head[2].__name__ == "IBNormLlamaForCausalLM")
    rivals = sorted({name for name, spec in SPECS.items() if spec.classes.get("token", object).__module__ == HOME})
    asked = [{"norm_type": name} for name in rivals]
    asked += [
        {"norm_type": "ibnorm-clip", "norm_lambda_learned": True},
        {"norm_type": "layernorm", "norm_depth_scale": "sqrt"},
    ]
    made = []
    for flags in asked:
        job, model = make_job(tmp_path, config_class, auto, cls, **flags)
        made.append((job | {"output": job["input"] + ".absent"}, model))
    answers = run_jobs(tmp_path, [*(job for job, _ in made), *not_exported(tmp_path)])
    # Neither loads where nobody knows its type, and the host's own class does not take it for a vanilla model.
    for by_type, by_class in (answers.pop(), answers.pop()):
        assert by_type.startswith("refused: The checkpoint you are trying to load has model type `ibnorm_")
        assert by_class.startswith("refused: ") and "norms" in by_class
    assert len(made) >= 9
    for (job, model), answer in zip(made, answers, strict=True):
        assert answer["module"].startswith("transformers_modules.")
        there = load_file(job["output"])
        assert all(torch.equal(there[name], tensor) for name, tensor in expected(job, model).items()), job["folder"]
