# SPDX-License-Identifier: Apache-2.0
"""An architecture that no family knows, whichever families there are by now."""

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ibnorm_hf import registration  # noqa: F401 (enters the families in CONFIG_MAPPING)

# Language models that build from the sizes of LLaMA.
_HOSTS = ("stablelm", "qwen2", "olmo", "starcoder2", "helium", "granite", "smollm3")
FOREIGN = next(host for host in _HOSTS if f"ibnorm_{host}" not in CONFIG_MAPPING)
