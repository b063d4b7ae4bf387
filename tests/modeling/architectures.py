# SPDX-License-Identifier: Apache-2.0
"""Every architecture of the installed transformers, as small as its config allows, under its own norms of this package.

    python -m tests.modeling.architectures     # all of them: five minutes; writes results/architectures.csv

A model is built from random weights and run; each of its norms is then replaced by the ``norm_type`` that computes the
same, and what the model gives must stay as it was. What replace_norms refuses is left alone, its sentence is kept.
"""

import collections
import contextlib
import csv
import inspect
import re
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from ibnorm_hf import replace_norms
from ibnorm_hf.modeling.recognize import family_of, iter_norms
from recipes.benchmarks import stamp

RESULT = "recipes/benchmarks/results/architectures.csv"
PARAMETERS, SECONDS = 4_000_000, 60  # a model that stays larger, or takes longer, is left out

# The first pattern that fits a key gives its number; a list of numbers becomes a list of them, as long as before.
_SIZES = [
    (r"(initializer|dropout|_id$|_ids$|eps|_token|rate$|prob|stride|kernel|theta|std$|factor|scale|groups?$)", None),
    (r"vocab", 96),
    (r"(rotary_dim|head_dim|d_kv|attention_head_size|qk_.*dim|v_head_dim|head_size)", 8),
    (r"(kv_heads|key_value_heads|num_query_groups)", 2),
    (r"(heads?$|n_head|attention_heads)", 4),
    (r"(experts_per_tok|top_?k|moe_k|n_group|topk_group)", 1),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts)", 4),
    (r"(layers?$|n_layer|num_.*blocks?|depths?$|_depth$|num_stages_)", 2),
    (r"(intermediate|ffn|inner|mlp_dim|feed_?forward|d_ff|fc_dim)", 64),
    (r"(max_.*position|n_positions|n_ctx|max_.*length|seq_length|max_seq)", 128),
    (r"(image_size|img_size|input_size)", 32),
    (r"(window|chunk)", 8),
    (r"(state_size|d_state|conv_kernel|rank$|_rank)", 8),
    (r"(hidden|d_model|n_embd|embd?_|embed|_dim$|^dim|width|channels?_?$|sizes?$|num_.*filters|projection)", 32),
]
_KEPT = re.compile(r"(num_channels|in_channels|patch_size|num_labels|chunk_size_feed|tie_|_type$|num_mel|image_token)")


def small_config(model_type: str) -> PreTrainedConfig:
    """The default config of a model type, shrunk by the names of its keys, in its sub-configs too."""
    config = CONFIG_MAPPING[model_type]()
    _shrink(config)
    return config


def _shrink(config: PreTrainedConfig) -> None:
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif not key.startswith("_") and not isinstance(value, bool):
            with contextlib.suppress(Exception):
                setattr(config, key, _smaller(key, value))
    for rope in (getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)):
        if isinstance(rope, dict) and "mrope_section" in rope:
            rope["mrope_section"] = [2, 1, 1]  # half of a head
    layers = next((v for k in ("num_hidden_layers", "n_layer") if isinstance(v := getattr(config, k, 0), int)), 0)
    kinds = getattr(config, "layer_types", None)
    if layers and isinstance(kinds, list):
        config.layer_types = [*dict.fromkeys(kinds), *kinds][:layers]


def _smaller(key: str, value: Any) -> Any:
    if re.search(r"_token_id$|_index$", key) and isinstance(value, int) and value >= 96:
        return 95
    size = None if _KEPT.search(key) else next((size for pattern, size in _SIZES if re.search(pattern, key)), None)
    if size is None:
        return value
    if isinstance(value, int):
        return min(value, size)
    if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
        return type(value)(min(v, size) for v in value)
    return value


def small_model(model_type: str) -> nn.Module:
    """That model in evaluation, every vector of its parameters drawn at random: new norms would compute the same."""
    config = small_config(model_type)
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    if count > PARAMETERS:
        raise ValueError(f"{count} parameters")
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _inputs(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Batches that a forward may take, text alone first."""
    generator = torch.Generator().manual_seed(0)
    names = inspect.signature(model.forward).parameters
    text = {
        name: torch.randint(3, 90, (2, 12), generator=generator)
        for name in ("input_ids", "decoder_input_ids")
        if name in names
    }
    config = model.config
    vision = getattr(config, "vision_config", None) or config
    size, channels = getattr(vision, "image_size", 32), getattr(vision, "num_channels", 3)
    height, width = (size, size) if isinstance(size, int) else tuple(size or (32, 32))[:2]
    mels = getattr(getattr(config, "audio_config", None) or config, "num_mel_bins", 80)
    audio = 2 * getattr(config, "max_source_positions", 64)
    shapes = {
        "pixel_values": [(2, channels, height, width), (2, channels, 64, 64), (2, 2, channels, height, width)],
        "pixel_values_videos": [(1, 2, channels, height, width)],
        "input_values": [(2, 4000), (2, 1, 4000), (2, 64, mels)],
        "input_features": [(2, mels, audio), (2, 64, mels)],
        "inputs_embeds": [(2, 12, 32)],
        "hidden_states": [(2, 12, 32)],
    }
    if text:
        yield text
    for name, choices in shapes.items():
        for shape in choices if name in names else ():
            if all(isinstance(n, int) for n in shape):
                other = torch.randn(shape, generator=generator)
                yield {name: other}
                if text:
                    yield {**text, name: other}


def _outputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return [t for t in _tensors(model(**batch)) if t.is_floating_point()]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _runnable(model: nn.Module) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    error: Exception | None = None
    for batch in _inputs(model):
        try:
            outputs = _outputs(model, batch)
        except TimeoutError:
            raise
        except Exception as e:
            error = error or e
            continue
        if outputs and all(t.isfinite().all() for t in outputs[:1]):
            return batch, outputs
        error = ValueError("no output is a finite number")
    raise error or ValueError("its forward takes nothing that is known here")


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture: ``swapped`` and ``kept`` count its norms, ``why`` is a refusal or an error."""

    model_type: str
    kind: str  # all, some, refused, nothing, different; not built, not run: no config or batch of this file fits it
    swapped: int = 0
    kept: int = 0
    why: str = ""


def tried(model_type: str) -> Outcome:
    """Put each norm's own kind in its place and compare what the model gives before and after."""

    def too_late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(SECONDS)
    step = "not built"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = small_model(model_type)
            step = "not run"
            batch, expected = _runnable(model)
            step = "error"
            return _swapped(model_type, model, batch, expected)
    except Exception as error:
        return Outcome(model_type, step, why=" ".join(f"{type(error).__name__}: {error}".split())[:200])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _swapped(
    model_type: str, model: nn.Module, batch: dict[str, torch.Tensor], expected: list[torch.Tensor]
) -> Outcome:
    families = {path: family_of(modules[0]) for path, modules in iter_norms(model)}
    if not families:
        return Outcome(model_type, "nothing", why=_refusal(model, ()))
    unknown = next((path for path, family in families.items() if family is None), None)
    why = _refusal(model, [path for path in families if not _covers(unknown, path)]) if unknown else ""
    swapped = 0
    for family in sorted({f for f in families.values() if f}):
        swapped += len(replace_norms(model, family, exclude=[path for path, f in families.items() if f != family]))
    found = _outputs(model, batch)
    same = len(found) == len(expected) and all(
        torch.allclose(a, b, 1e-3, 1e-4 * max(1.0, b.nan_to_num().abs().max().item()), equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )
    kept = len(families) - swapped
    kind = "different" if not same else "refused" if not swapped else "some" if kept else "all"
    return Outcome(model_type, kind, swapped, kept, why)


def _covers(path: str, excluded: str) -> bool:
    return path == excluded or path.endswith(f".{excluded}")


def _refusal(model: nn.Module, exclude: Sequence[str]) -> str:
    try:
        replace_norms(model, "layernorm", exclude=exclude)
    except ValueError as error:
        return str(error)
    raise AssertionError("replaced what it does not know")


def recorded() -> dict[str, dict[str, str]]:
    """The rows of the table, by model type."""
    with (stamp.ROOT / RESULT).open(newline="", encoding="utf-8") as file:
        return {row["model_type"]: row for row in csv.DictReader(file)}


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    rows = []
    for model_type in MODEL_MAPPING_NAMES:
        if not model_type.startswith("ibnorm_"):
            rows.append({**asdict(tried(model_type)), "transformers": transformers.__version__})
    path: Path = stamp.ROOT / RESULT
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    stamp.write_beside(path)
    print(dict(collections.Counter(row["kind"] for row in rows)))


if __name__ == "__main__":
    main()
