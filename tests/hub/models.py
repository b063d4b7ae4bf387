# SPDX-License-Identifier: Apache-2.0
"""One tiny model of every registered architecture and head, in a folder."""

import torch
from transformers.utils import logging

from ibnorm_hf import registration

from ..hosts import HOSTS, labels

logging.disable_progress_bar()

SMALLER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "n_embd": 16, "n_head": 2}
SMALLER |= {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "num_labels": 3, "image_size": 8, "patch_size": 4}
HOST_OF = {host.config: host for host in HOSTS.values()}


def heads(every=True):
    """(config class, auto class, model class) of every registered head, or of one head a config."""
    for config_class, classes in registration._MODELS.items():
        # AutoBackbone.from_pretrained takes names on the Hub and no folder, so a backbone cannot be tried from one.
        pairs = [(auto, cls) for auto, cls in classes.items() if auto.__name__ not in ("AutoModel", "AutoBackbone")]
        for auto, cls in pairs if every else pairs[:1]:
            yield config_class, auto, cls


def sizes(model_type):
    """The tiny sizes of a registered model type."""
    return next(HOST_OF[config] for config in HOST_OF if config.model_type == model_type).sizes(**SMALLER)


def build(config_class, cls, **flags):
    """A model whose every parameter, norm weights included, has a value that no initialization gives."""
    torch.manual_seed(0)
    config = config_class(**{**HOST_OF[config_class].sizes(**SMALLER), **labels(cls), **flags})
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
