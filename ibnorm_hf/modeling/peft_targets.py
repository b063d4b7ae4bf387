# SPDX-License-Identifier: Apache-2.0
"""PEFT knows which modules to adapt by model type; ours are their host's, so that ``LoraConfig()`` suffices."""

import sys

# PEFT's few entries for ViT bear names that transformers has left; its attention has the names of LLaMA's, so that
# LLaMA's entries fit, except these.
_VIT = {
    "LNTUNING_TARGET": ["layernorm_before", "layernorm_after", "layernorm"],
    "IA3_TARGET": ["k_proj", "v_proj", "fc2"],
    "IA3_FEEDFORWARD": ["fc2"],
    "OSF_TARGET": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
}


def share_peft_targets(model_type: str, host: str | None = None) -> None:
    """Enter ``ibnorm_X`` wherever PEFT, if it is imported, has default modules for X; what is entered already stays.

    ``host`` is X where it does not follow from the model type.
    """
    constants = sys.modules.get("peft.utils.constants")
    host = host or model_type.removeprefix("ibnorm_")
    if constants is None or host == model_type:
        return
    for name, mapping in list(vars(constants).items()):
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING"):
            method = name.removeprefix("TRANSFORMERS_MODELS_TO_").removesuffix("_MODULES_MAPPING")
            targets = _VIT.get(method, mapping.get("llama")) if host == "vit" else mapping.get(host)
            if targets is not None:
                mapping.setdefault(model_type, targets)
