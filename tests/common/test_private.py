# SPDX-License-Identifier: Apache-2.0
"""Private parts of libraries: one that is renamed ends the job that needs it; no file but theirs uses any."""

import ast
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace

import accelerate.hooks
import datasets
import peft.utils.other
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ibnorm_hf import IBNormGPT2Config, IBNormGPT2Model
from ibnorm_hf.common import private, private_accelerate, private_lm_eval, private_torch, private_transformers
from ibnorm_hf.common.errors import UserError
from ibnorm_hf.common.private_datasets import fingerprint_of
from ibnorm_hf.evaluation import command
from ibnorm_hf.modeling import private_accelerate as hooks
from ibnorm_hf.modeling import private_torch as torch_parts
from ibnorm_hf.modeling import wrappers
from ibnorm_hf.training import job

ROOT = Path(private.__file__).parents[1]
TABLES = {
    "training": private_transformers.TRAINING,
    "compiling": private_torch.COMPILING,
    "launching": private_accelerate.LAUNCHING,
    "evaluating": private_lm_eval.EVALUATING,
}
PARTS = [(table, name) for table, parts in TABLES.items() for name in parts.names]


def rename(monkeypatch, name):
    """Give a part of a library another name, wherever it stands."""
    where, _, path = name.partition(":")
    *above, last = path.split(".")
    owner = pkgutil.resolve_name(where + (":" + ".".join(above) if above else ""))
    if isinstance(owner, type):
        owner = next(cls for cls in owner.__mro__ if last in vars(cls))
    if "_config_module" in dir(owner) or type(owner).__name__ == "ConfigModuleInstance":
        monkeypatch.setattr(private, "_is_there", lambda other: other != name)  # torch's settings cannot be deleted
        return
    monkeypatch.setattr(owner, last + "_renamed", getattr(owner, last), raising=False)
    monkeypatch.delattr(owner, last)


# What needs each table, so that a job ends before it begins.
STARTS = {
    "training": lambda: job.pretrain(SimpleNamespace(run=SimpleNamespace(output_dir="nowhere", process_index=0))),
    "compiling": lambda: private_torch.allow_recompiles(8),
    "launching": lambda: private_accelerate.launch(["--help"]),
    "evaluating": lambda: command._harness(None, ["leaderboard"], None, Path("nowhere"), []),
}


@pytest.mark.parametrize(("table", "name"), PARTS, ids=[name for _, name in PARTS])
def test_a_renamed_part_ends_the_job_in_a_sentence(monkeypatch, table, name):
    parts = TABLES[table]
    parts.require()
    rename(monkeypatch, name)
    with pytest.raises(UserError) as caught:
        STARTS[table]()
    said = str(caught.value)
    assert name.replace(":", ".") in said and said.endswith(f"install {parts.library} {parts.seen}"), said


@pytest.mark.parametrize("name", sorted(torch_parts._FUNCTIONS.values()))
def test_a_renamed_part_of_torch_raises_where_it_is_called(monkeypatch, name):
    assert torch_parts.part(name)
    monkeypatch.setattr(torch_parts, "torch", SimpleNamespace(__version__="3.0"))  # it has none of them
    gone = torch_parts.part(name)
    with pytest.raises(ImportError, match=rf"has no torch\.{re.escape(name)}, .*; install torch 2\.9 to 2\.13"):
        gone(torch.ones(1))


@pytest.mark.parametrize("name", [*torch_parts.HOOKS, "_modules", "_parameters"])
def test_a_renamed_table_of_modules_raises(name):
    module = nn.LayerNorm(4)
    vars(module)[name + "_renamed"] = vars(module).pop(name)
    uses = {"_modules": torch_parts.children_of, "_parameters": lambda m: torch_parts.copy_with(m, {})}
    with pytest.raises(ImportError, match=rf"has no torch\.nn\.Module\.{name}"):
        uses.get(name, torch_parts.hooks_of)(module)


def test_inductors_list(monkeypatch):
    from torch._inductor import lowering

    monkeypatch.delattr(lowering, "FALLBACK_ALLOW_LIST")
    with pytest.raises(ImportError, match="FALLBACK_ALLOW_LIST"):
        torch_parts.keep_in_inductor("x::y")


@pytest.mark.parametrize("gone", ["hook", "mark"])
def test_initialization_is_joined_or_refused(monkeypatch, gone):
    config = IBNormGPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8, n_positions=8)
    IBNormGPT2Model(config)
    if gone == "hook":
        monkeypatch.delattr(PreTrainedModel, "_initialize_weights")
    else:
        monkeypatch.setattr(init, "ones_", lambda tensor: tensor)
    with pytest.raises(ImportError, match="_initialize_weights" if gone == "hook" else "mark _is_hf_initialized"):
        IBNormGPT2Model(config)


def test_accelerates_hooks_are_known_by_name_or_refused(monkeypatch):
    module = nn.LayerNorm(4)
    assert not hooks.has_hook(module)
    accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    assert hooks.has_hook(module)
    hooks._require.cache_clear()
    monkeypatch.setattr(accelerate.hooks, "add_hook_to_module", lambda module, hook: setattr(module, "_hook", hook))
    with pytest.raises(ImportError, match=r"keeps no _hf_hook, _old_forward on a module, .* install accelerate 1\.10"):
        hooks.has_hook(module)


def test_pefts_wrappers_are_known_by_name_or_refused(monkeypatch):
    wrappers._require_names.cache_clear()
    wrappers._require_names()
    wrappers._require_names.cache_clear()
    monkeypatch.setattr(peft.utils.other.ModulesToSaveWrapper, "adapter_layer_names", ("modules_to_keep",))
    with pytest.raises(ImportError, match=r"keeps no modules_to_save in .*; install peft 0\.19 to 0\.21|install peft"):
        wrappers._require_names()


def test_the_parser_of_the_harness_and_the_mark_of_a_data_set(monkeypatch):
    from lm_eval._cli import harness

    monkeypatch.setattr(harness, "HarnessCLI", lambda: SimpleNamespace(parser=None))
    with pytest.raises(UserError, match=r"has no lm_eval\._cli\.harness\.HarnessCLI\._parser"):
        private_lm_eval.parse_words([])
    rows = datasets.Dataset.from_dict({"x": [1]})
    assert fingerprint_of(rows)
    del rows._fingerprint
    with pytest.raises(UserError, match=r"has no .*Dataset\._fingerprint, .*; install datasets 4\.0 to 5\.2"):
        fingerprint_of(rows)


def test_no_other_file_touches_a_private_part_of_a_library():
    """Private is a name with one leading underscore that this package does not define itself."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
    own = {name for tree in trees.values() for name in _defined(tree)}
    allowed = {"_prepare_inputs", "_SubParsersAction", "_exit"}  # listed for Trainer; argparse and os name theirs so
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path, tree in trees.items()
        if not path.name.startswith("private")
        for line, name in _used(tree)
        if name not in own | allowed
    ]
    assert not found, found


def _defined(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            for inner in ast.walk(target) if target is not None else ():
                if isinstance(inner, ast.Name):
                    yield inner.id
                elif isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self":
                    yield inner.attr


def _used(tree):
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [word for alias in node.names for word in alias.name.split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        yield from ((node.lineno, name) for name in names if re.match(r"_[a-zA-Z]", name))
