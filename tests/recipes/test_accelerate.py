# SPDX-License-Identifier: Apache-2.0
"""The launch configurations, read by accelerate's own loader."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
EXPECTED = {
    "cpu": ("NO", 1, 1),
    "single_gpu": ("NO", 1, 1),
    "ddp": ("MULTI_GPU", 8, 1),
    "fsdp2": ("FSDP", 8, 1),
    "fsdp2_zero2": ("FSDP", 8, 1),
    "deepspeed_zero2": ("DEEPSPEED", 8, 1),
    "deepspeed_zero3": ("DEEPSPEED", 8, 1),
    "multi_node": ("MULTI_GPU", 16, 2),
}


def test_the_table_is_complete():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{name}.yaml`" in readme for name in EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name: str):
    kind, processes, machines = EXPECTED[name]
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # refuses unknown keys
    assert (str(config.distributed_type), config.num_processes, config.num_machines) == (
        f"DistributedType.{kind}",
        processes,
        machines,
    )
    assert config.use_cpu is (name == "cpu")
    assert config.mixed_precision == "no"  # a recipe's bf16 must not be contradicted
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


@pytest.mark.parametrize("name", EXPECTED)
def test_nested_keys_are_options_of_accelerate(name: str):
    # The loader keeps nested mappings as they are, and the launcher drops what it does not know.
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(content.get(section, {})) <= known


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_is_commented_and_the_header_gives_the_command(name: str):
    text = (FOLDER / f"{name}.yaml").read_text()
    header = text.split("\n\n")[0]
    assert f"accelerate launch --config_file recipes/accelerate/{name}.yaml" in header and "# Run: " in header
    for line in text.splitlines():
        if re.match(r"\s*\w+:", line):
            assert "  # " in line, line
