# SPDX-License-Identifier: Apache-2.0
"""One test class an architecture: transformers' mixins on the classes of one arm (PEER_ARM)."""

from __future__ import annotations

import functools
import json
import os
import unittest
from typing import Any

from ..generation.test_utils import GenerationTesterMixin
from ..test_configuration_common import ConfigTester
from ..test_modeling_common import ModelTesterMixin
from ..test_training_mixin import TrainingTesterMixin
from . import testers
from .architectures import ARCHITECTURES, Architecture, enter_names, load


class CompleteInputs:
    """The inputs of a head, with the labels that its tester alone knows."""

    model_tester: testers.Tester

    def _prepare_for_class(self, inputs_dict: Any, model_class: type, return_labels: bool = False) -> Any:
        prepared = super()._prepare_for_class(inputs_dict, model_class, return_labels)  # type: ignore[misc]
        return self.model_tester.complete(prepared, model_class, labels=return_labels)


ARM = os.environ["PEER_ARM"]
FLAGS = json.loads(os.environ.get("PEER_CONFIG_FLAGS", "{}"))


def build(architecture: Architecture) -> type[unittest.TestCase]:
    config_class, heads = load(architecture, ARM)
    enter_names(architecture, config_class, heads)

    def set_up(self: unittest.TestCase) -> None:
        self.model_tester = getattr(testers, architecture.tester)(config_class, heads, FLAGS)
        self.config_tester = ConfigTester(self, config_class=config_class, **architecture.config_test)

    def test_config(self: unittest.TestCase) -> None:
        self.config_tester.run_common_tests()

    def skipped(reason: str) -> functools.partialmethod:
        return functools.partialmethod(unittest.TestCase.skipTest, reason)

    body = {
        "__module__": __name__,
        "setUp": set_up,
        "test_config": test_config,
        "all_model_classes": heads,
        # LLaMA, GPT-2, ViT and ResNet are older than this test and may skip it: it is the one that catches norm
        # weights left uninitialised, so it runs in both arms.
        "test_can_init_all_missing_weights_before_2023": True,
        **architecture.attributes,
        **{name: skipped(reason) for name, reason in architecture.not_applicable.items()},
    }
    bases: tuple[type, ...] = (CompleteInputs, ModelTesterMixin, unittest.TestCase)
    if any(head.can_generate() for head in heads):
        bases = (CompleteInputs, ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase)
    return type(architecture.class_name, bases, body)


# No name of this module but the class's own may hold it: pytest would collect it twice.
globals().update({a.class_name: build(a) for a in map(ARCHITECTURES.get, os.environ["PEER_ARCHITECTURES"].split(","))})
