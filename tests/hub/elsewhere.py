# SPDX-License-Identifier: Apache-2.0
"""Run by the tests in a process of its own: what somebody without ibnorm_hf and peft does with exports.

Arguments: a JSON file with jobs [{"auto", "folder", "again", "input", "output"}], and where the answers go.
"""

import json
import sys

if "--with_ibnorm_hf" in sys.argv:
    import ibnorm_hf  # noqa: F401

    TRUST = {}
else:

    class Absent:
        """Stands for an environment where the package was never installed."""

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "ibnorm_hf":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())
    sys.modules["peft"] = None  # transformers looks for it by itself
    TRUST = {"trust_remote_code": True}

import torch
import transformers
from safetensors.torch import load_file, save_file


def inputs_of(job):
    return {k: v if k == "pixel_values" else v.long() for k, v in load_file(job["input"]).items()}


def output(model, inputs):
    with torch.no_grad():
        out = model.eval()(**inputs)
    return {k: v.contiguous() for k, v in out.items() if torch.is_tensor(v)}


def use(job):
    auto = getattr(transformers, job["auto"])
    if "refused_by" in job:
        return [why_not(getattr(transformers, name), job["folder"]) for name in job["refused_by"]]
    model = auto.from_pretrained(job["folder"], **TRUST)
    inputs = inputs_of(job)
    before = output(model, inputs)
    if job["auto"] == "AutoModelForCausalLM":
        before["generated"] = model.generate(inputs["input_ids"], max_new_tokens=5, do_sample=False)
    save_file(before, job["output"])
    answer = {"class": type(model).__name__, "module": type(model).__module__}
    if "picture" in job:
        answer["pixels"] = look(job)
    if "again" in job:
        answer["moved"] = train_one_step(model, inputs, before)
        trained = output(model, inputs)
        model.save_pretrained(job["again"])
        second = output(auto.from_pretrained(job["again"], **TRUST), inputs)
        answer["second_generation"] = sorted(trained) == sorted(second) and all(
            torch.equal(trained[k], second[k]) for k in trained
        )
    return answer


def look(job):
    """What the image processor makes of a picture, the second generation's too; and the labels of a pipeline."""
    found = []
    processor = transformers.AutoImageProcessor.from_pretrained(job["folder"], **TRUST)
    processor.save_pretrained(job["picture"] + ".again")
    for one in (processor, transformers.AutoImageProcessor.from_pretrained(job["picture"] + ".again", **TRUST)):
        found.append(one(job["picture"], return_tensors="pt")["pixel_values"].flatten().tolist())
    classify = transformers.pipeline("image-classification", model=job["folder"], **TRUST)
    answers = classify(job["picture"], function_to_apply="none")
    return {"found": found, "logits": {a["label"]: a["score"] for a in answers}}


def why_not(cls, folder):
    try:
        return type(cls.from_pretrained(folder)).__name__
    except Exception as error:
        return f"refused: {error}"


def train_one_step(model, inputs, before):
    """One AdamW step on a random direction of the first output; how far the norms' weights moved."""
    model.train()
    # Norms, and not parameters called norm: their classes are the copied ones.
    norms = [p for m in model.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)]
    start = [p.detach().clone() for p in norms]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = next(iter(v for v in model(**inputs).values() if torch.is_tensor(v)))
    (first * torch.randn(first.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    optimizer.step()
    return min((p - q).abs().max().item() for p, q in zip(norms, start, strict=True))


if __name__ == "__main__":
    with open(sys.argv[1]) as handle:
        jobs = json.load(handle)
    with open(sys.argv[2], "w") as handle:
        json.dump([use(job) for job in jobs], handle)
    assert ("ibnorm_hf" in sys.modules) == ("--with_ibnorm_hf" in sys.argv)
