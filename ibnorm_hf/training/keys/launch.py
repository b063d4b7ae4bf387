# SPDX-License-Identifier: Apache-2.0
"""What reaches a run from outside its recipe: accelerate's settings, which come by the environment, and the devices.

What decides the result becomes a key of the recipe, so that config.yaml says it and a resumed run is compared with it;
what this package cannot vouch for is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ...common.errors import UserError
from ...common.private_accelerate import launch
from .arguments import RunArguments
from .reading import Asked, read

_ACCELERATE = "accelerate's settings"
_OFF = ("", "no", "none", "false", "0", "auto")
_PRECISIONS = ("bf16", "fp16")
# Settings without a key of ours: (variable, what accelerate calls it, what to do).
_REFUSED = (
    ("ACCELERATE_DYNAMO_BACKEND", "dynamo_backend", "compile by the recipe's key torch_compile"),
    ("ACCELERATE_USE_MEGATRON_LM", "megatron_lm", "use FSDP or DeepSpeed, see recipes/accelerate"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config", "use FSDP or DeepSpeed, see recipes/accelerate"),
    ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "deepspeed_config_file", "write its settings as in deepspeed_zero2.yaml"),
    ("FSDP_ACTIVATION_CHECKPOINTING", "fsdp_activation_checkpointing", "set the recipe's key activation_checkpointing"),
)


def _setting(variable: str) -> str:
    """A setting of the environment, in lower case; empty where it is off or left to the recipe."""
    value = os.environ.get(variable, "").strip().lower()
    return "" if value in _OFF else value


def take_environment(asked: Asked) -> None:
    """Make accelerate's mixed precision a key of the recipe, or refuse what contradicts the recipe or has no key.

    Raises:
        UserError: a setting that the recipe contradicts, or that is not supported.
    """
    for variable, name, advice in _REFUSED:
        if _setting(variable) and (variable[:4] != "FSDP" or _setting("ACCELERATE_USE_FSDP")):
            raise UserError(f"{_ACCELERATE}: {name} is {os.environ[variable]}, which is not supported; {advice}")
    precision = _setting("ACCELERATE_MIXED_PRECISION")
    if not precision:
        return
    if precision not in _PRECISIONS:
        raise UserError(f"{_ACCELERATE}: mixed_precision is {precision}, which is not supported; use bf16, fp16 or no")
    for key in _PRECISIONS:
        wanted = key == precision
        if key in asked.where and asked.values[key] is not wanted:
            said = str(asked.values[key]).lower()
            raise UserError(
                f"{_ACCELERATE}: mixed_precision is {precision}, but {asked.where[key]} says {key} {said}; "
                "let the recipe decide, with mixed_precision no"
            )
        if wanted:
            asked.values[key], asked.where[key] = True, _ACCELERATE


def check_launch(run: RunArguments, command: str) -> None:
    """Refuse settings of a launch that would change what a step computes.

    Args:
        run: the parsed arguments, which know processes and devices.
        command: the recipe's path, for the command that is proposed.

    Raises:
        UserError: DeepSpeed's clipping or accumulation disagree with the recipe, or one process has several devices.
    """
    for variable, key in (
        ("ACCELERATE_GRADIENT_CLIPPING", "max_grad_norm"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps"),
    ):
        setting = _setting(variable)
        if _setting("ACCELERATE_USE_DEEPSPEED") and setting and float(setting) != getattr(run, key):
            name = variable.removeprefix("ACCELERATE_").lower()
            raise UserError(
                f"{_ACCELERATE}: {name} is {setting}, but the recipe's {key} is {getattr(run, key)}; "
                f"write `{name}: auto` there"
            )
    if run.n_gpu > 1:
        raise UserError(
            f"{run.n_gpu} devices and one process: start a process a device, `accelerate launch --num_processes "
            f"{run.n_gpu} -m ibnorm_hf.cli pretrain {command}`, or show one device (CUDA_VISIBLE_DEVICES=0)"
        )


def strategy() -> str:
    """How accelerate spreads the model, by its own setting: fsdp, deepspeed, or copy (whole on every process)."""
    return next((name for name in ("fsdp", "deepspeed") if _setting(f"ACCELERATE_USE_{name.upper()}")), "copy")


def launch_over_devices(job: str, recipe: str | Path, words: list[str]) -> int | None:
    """Start a process a device where nobody else has: several devices, and no launcher in sight.

    Otherwise Trainer would put one process on all of them and multiply the batch behind the recipe's back.

    Args:
        job: the sub-command, and ``recipe`` and ``words`` what follows it.

    Returns:
        The exit code of the processes; None where this process is to do the work itself.

    Raises:
        UserError: as ``read`` does.
    """
    launched = any(name in os.environ for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"))
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if launched or count < 2 or _setting("ACCELERATE_USE_CPU") or read(recipe, words).values.get("use_cpu"):
        return None
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(count)]
    settings = ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the recipe decides
    print(f"launch: {count} devices, a process each")
    try:
        launch([*options, *settings, "--module", "ibnorm_hf.cli", job, str(recipe), *words])
    except ChildFailedError as error:  # the process has said why
        code = int(error.get_first_failure()[1].exitcode)
        return code if code > 0 else 128 - code
    return 0
