# SPDX-License-Identifier: Apache-2.0
"""Two converted models, of a family and of a host without one, go to the Hub of HF_ENDPOINT and come back."""

import torch
from transformers import AutoModelForCausalLM

from ibnorm_hf import load_swapped, replace_norms

from ..modeling.test_identity import foreign
from ..modeling.test_shared import llama


def refused(load, *arguments, **options) -> str:
    try:
        return f"loaded as {type(load(*arguments, **options)).__name__}"
    except ValueError as error:
        return str(error)


def main() -> None:
    for make, name, load in (
        (llama, "me/known", AutoModelForCausalLM.from_pretrained),
        (foreign, "me/other", load_swapped),
    ):
        model = make()
        replace_norms(model, "ibnorm-t", norm_lambda=1)
        model.push_to_hub(name)
        again = load(name)
        assert type(again) is type(model)
        weights = again.state_dict()
        assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())
    print(refused(AutoModelForCausalLM.from_pretrained, "me/other"))
    print(refused(AutoModelForCausalLM.from_pretrained, "me/known", config=llama().config))


if __name__ == "__main__":
    main()
