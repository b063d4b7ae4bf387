# SPDX-License-Identifier: Apache-2.0
"""IBNorm and its baselines inside Hugging Face models.

``import ibnorm_hf`` registers the model type of each file ``modeling/modeling_ibnorm_*.py``, e.g. ``ibnorm_llama``,
with the Auto classes of transformers; everything else is loaded when it is first used.
"""

import ast
import sys
import warnings
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation.perplexity import evaluate_perplexity
    from .hub.convert import convert
    from .hub.export import export
    from .modeling.batch_norms import IBBatchNorm2d
    from .modeling.compression import register_compression
    from .modeling.configuration_ibnorm import (
        IBNormGPT2Config,
        IBNormLlamaConfig,
        IBNormResNetConfig,
        IBNormViTConfig,
    )
    from .modeling.create import create_norm, list_norms
    from .modeling.functional import ib_norm
    from .modeling.guard import assert_norms
    from .modeling.image_processing_ibnorm import IBNormImageProcessor
    from .modeling.no_family import load_swapped
    from .modeling.norms import IBNorm, NormalNorm, RMSNorm
    from .modeling.replace import replace_norms, restore_norms
    from .modeling.rivals import DynamicTanh
    from .modeling.sync_norms import IBSyncBatchNorm2d
    from .training.job import pretrain
    from .training.keys.recipe import load_recipe
    from .training.loop.telemetry import NormTelemetry

__version__ = "0.1.0"

# The first and last minor release that the tests were run with, and the first that is known to be another interface.
_TRANSFORMERS_TESTED, _TRANSFORMERS_BELOW = ("5.17", "5.24"), "6"

# What is imported above for type checkers alone, by module: loaded when it is first used.
_PUBLIC = {
    "evaluation.perplexity": ("evaluate_perplexity",),
    "hub.convert": ("convert",),
    "hub.export": ("export",),
    "modeling.compression": ("register_compression",),
    "modeling.batch_norms": ("IBBatchNorm2d",),
    "modeling.configuration_ibnorm": (
        "IBNormGPT2Config",
        "IBNormLlamaConfig",
        "IBNormResNetConfig",
        "IBNormViTConfig",
    ),
    "modeling.functional": ("ib_norm",),
    "modeling.create": ("create_norm", "list_norms"),
    "modeling.image_processing_ibnorm": ("IBNormImageProcessor",),
    "modeling.no_family": ("load_swapped",),
    "modeling.norms": ("IBNorm", "NormalNorm", "RMSNorm"),
    "modeling.rivals": ("DynamicTanh",),
    "modeling.guard": ("assert_norms",),
    "modeling.replace": ("replace_norms", "restore_norms"),
    "modeling.sync_norms": ("IBSyncBatchNorm2d",),
    "training.job": ("pretrain",),
    "training.keys.recipe": ("load_recipe",),
    "training.loop.telemetry": ("NormTelemetry",),
}


_MODELING = "modeling.modeling_ibnorm_"
# A family of hosts is a file of this name; its public names are read from its ``__all__`` without running it: that
# loads torch.
for _file in sorted((Path(__file__).parent / "modeling").glob("modeling_ibnorm_*.py")):
    _names = _file.read_text(encoding="utf-8").rpartition("__all__ = ")[2]
    _PUBLIC[f"modeling.{_file.stem}"] = tuple(ast.literal_eval(_names))
FAMILIES = tuple(module.removeprefix(_MODELING) for module in _PUBLIC if module.startswith(_MODELING))
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ibnorm_hf' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


def _check_transformers(version: str) -> None:
    """Refuse a release that cannot work, and warn of one that nobody has tried.

    What this package needs of a later release beyond its public interface is looked for where it is used
    (``common/private_transformers.py``): a part that is gone is an ImportError there.

    Raises:
        ImportError: older than the first release tested, or of the next major version.
    """
    first, last = _TRANSFORMERS_TESTED
    found, lowest, tested, below = (
        [int(part) for part in bound.split(".")[:2]] for bound in (version, first, last, _TRANSFORMERS_BELOW)
    )
    if not lowest <= found < below:
        raise ImportError(
            f"ibnorm_hf {__version__} works with transformers >={first},<{_TRANSFORMERS_BELOW}, "
            f"but {version} is installed; install a version in that range."
        )
    if found > tested:
        warnings.warn(
            f"ibnorm_hf {__version__} was tested with transformers {first} to {last}; {version} is installed, "
            "which is newer. Compare what you measure with a tested version before you rely on it.",
            stacklevel=2,
        )


_check_transformers(metadata.version("transformers"))

# The program's own module answers --help without loading torch; its jobs import the registration themselves.
if "ibnorm_hf_command" not in sys.modules:
    from . import registration as registration
