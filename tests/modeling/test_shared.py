# SPDX-License-Identifier: Apache-2.0
"""A converted model in the hands of PEFT and of two processes: what comes back has the norms that were trained."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from ibnorm_hf import IBNormLlamaForCausalLM, load_swapped, replace_norms
from ibnorm_hf.modeling.recognize import iter_norms, norm_name

from ..hosts import HOSTS, shake
from ..hub.models import sizes
from ..training.forked import launch
from .test_identity import foreign, output

LORA = {"init_lora_weights": False, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def llama():
    torch.manual_seed(0)
    return shake(AutoModelForCausalLM.from_config(HOSTS["llama"].vanilla(**sizes("ibnorm_llama"))))


def adapted(base, folder):
    """An adapter for a base that was loaded from somewhere, in a folder; and what the two compute."""
    torch.manual_seed(1)
    tuned = get_peft_model(base, LoraConfig(**LORA)).eval()
    tuned.save_pretrained(folder)
    return output(tuned, base)


def test_an_adapter_of_a_converted_base_finds_it_swapped(tmp_path):
    model = llama()
    replace_norms(model, "ibnorm-t", norm_lambda=1)
    model.save_pretrained(tmp_path / "base")
    wanted = adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert type(again.get_base_model()) is IBNormLlamaForCausalLM
    assert all(norm_name(m[0]) == "ibnorm-t" for _, m in iter_norms(again))
    torch.testing.assert_close(output(again, model), wanted, rtol=0, atol=1e-6)


def test_an_adapter_of_a_base_that_was_never_saved_finds_none(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the Hub has none either, and would be asked for long
    llama().save_pretrained(tmp_path / "vanilla")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "vanilla")
    replace_norms(model, "ibnorm-t")
    adapted(model, tmp_path / "adapter")
    with pytest.raises((OSError, ValueError, TypeError)):  # and not the weights that it was loaded from
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")


def test_an_adapter_of_an_unknown_host_names_the_door(tmp_path):
    model = foreign()
    replace_norms(model, "ibnorm-t", norm_lambda=1)
    model.save_pretrained(tmp_path / "base")
    wanted = adapted(load_swapped(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"load it by ibnorm_hf\.load_swapped"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_swapped(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(output(again, model), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [llama, foreign])
def test_two_processes_save_what_they_trained(make, tmp_path):
    make().save_pretrained(tmp_path / "base")
    done = launch(2, Path(__file__).with_name("ddp_save.py"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    load = load_swapped if make is foreign else AutoModelForCausalLM.from_pretrained
    again = load(tmp_path / "saved")
    state, other = (torch.load(tmp_path / f"state-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(norm_name(m[0]) == "ibnorm-t" for _, m in iter_norms(again))
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert state.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    if make is llama:
        assert type(again) is IBNormLlamaForCausalLM
