# SPDX-License-Identifier: Apache-2.0
"""The table: one entry a model family, for the vanilla classes and for ours alike."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType

ARMS = {"vanilla": ("transformers", ""), "ibnorm": ("ibnorm_hf", "IBNorm")}


@dataclass(frozen=True)
class Architecture:
    """Names without our prefix. `heads` maps transformers' tables of models (MODEL_..._MAPPING_NAMES) to classes."""

    config: str
    tester: str
    heads: dict[str, str]
    config_test: dict[str, object]  # given to ConfigTester
    at_least: int  # tests that pass; fewer means that something was skipped that used to run
    attributes: dict[str, object] = field(default_factory=dict)  # switches of ModelTesterMixin
    not_applicable: dict[str, str] = field(default_factory=dict)  # test -> why; for both arms, so for vanilla too

    @property
    def class_name(self) -> str:
        return self.config.removesuffix("Config") + "ModelTest"


ARCHITECTURES = {
    "llama": Architecture(
        config="LlamaConfig",
        tester="LlamaTester",
        heads={
            "MODEL": "LlamaModel",
            "MODEL_FOR_CAUSAL_LM": "LlamaForCausalLM",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION": "LlamaForSequenceClassification",
            "MODEL_FOR_TOKEN_CLASSIFICATION": "LlamaForTokenClassification",
            "MODEL_FOR_QUESTION_ANSWERING": "LlamaForQuestionAnswering",
        },
        config_test={"hidden_size": 64},
        at_least=105,
    ),
    "mistral": Architecture(
        config="MistralConfig",
        tester="LlamaTester",
        heads={
            "MODEL": "MistralModel",
            "MODEL_FOR_CAUSAL_LM": "MistralForCausalLM",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION": "MistralForSequenceClassification",
            "MODEL_FOR_TOKEN_CLASSIFICATION": "MistralForTokenClassification",
            "MODEL_FOR_QUESTION_ANSWERING": "MistralForQuestionAnswering",
        },
        config_test={"hidden_size": 64},
        at_least=105,
    ),
    "qwen2": Architecture(
        config="Qwen2Config",
        tester="LlamaTester",
        heads={
            "MODEL": "Qwen2Model",
            "MODEL_FOR_CAUSAL_LM": "Qwen2ForCausalLM",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION": "Qwen2ForSequenceClassification",
            "MODEL_FOR_TOKEN_CLASSIFICATION": "Qwen2ForTokenClassification",
            "MODEL_FOR_QUESTION_ANSWERING": "Qwen2ForQuestionAnswering",
        },
        config_test={"hidden_size": 64},
        at_least=105,
    ),
    "qwen3": Architecture(
        config="Qwen3Config",
        tester="WideHeadTester",
        heads={
            "MODEL": "Qwen3Model",
            "MODEL_FOR_CAUSAL_LM": "Qwen3ForCausalLM",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION": "Qwen3ForSequenceClassification",
            "MODEL_FOR_TOKEN_CLASSIFICATION": "Qwen3ForTokenClassification",
            "MODEL_FOR_QUESTION_ANSWERING": "Qwen3ForQuestionAnswering",
        },
        config_test={"hidden_size": 64},
        at_least=105,
    ),
    "olmo2": Architecture(
        config="Olmo2Config",
        tester="LlamaTester",
        heads={
            "MODEL": "Olmo2Model",
            "MODEL_FOR_CAUSAL_LM": "Olmo2ForCausalLM",
        },
        config_test={"hidden_size": 64},
        at_least=100,
    ),
    "gemma3_text": Architecture(
        config="Gemma3TextConfig",
        tester="WideHeadTester",
        heads={
            "MODEL": "Gemma3TextModel",
            "MODEL_FOR_CAUSAL_LM": "Gemma3ForCausalLM",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION": "Gemma3TextForSequenceClassification",
        },
        config_test={"hidden_size": 64},
        at_least=100,
        not_applicable=dict.fromkeys(
            (
                "test_model_rope_scaling_from_config_0_linear",
                "test_model_rope_scaling_from_config_1_dynamic",
                "test_model_rope_scaling_from_config_2_yarn",
                "test_model_rope_scaling_frequencies",
            ),
            "Gemma 3 has rotary parameters a kind of layer, which the test does not set",
        ),
    ),
    "bert": Architecture(
        config="BertConfig",
        tester="BertTester",
        heads={
            "MODEL": "BertModel",
            "MODEL_FOR_PRETRAINING": "BertForPreTraining",
            "MODEL_FOR_CAUSAL_LM": "BertLMHeadModel",
            "MODEL_FOR_MASKED_LM": "BertForMaskedLM",
            "MODEL_FOR_NEXT_SENTENCE_PREDICTION": "BertForNextSentencePrediction",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION": "BertForSequenceClassification",
            "MODEL_FOR_MULTIPLE_CHOICE": "BertForMultipleChoice",
            "MODEL_FOR_TOKEN_CLASSIFICATION": "BertForTokenClassification",
            "MODEL_FOR_QUESTION_ANSWERING": "BertForQuestionAnswering",
        },
        config_test={"hidden_size": 36},
        at_least=100,
    ),
    "gpt2": Architecture(
        config="GPT2Config",
        tester="GPT2Tester",
        heads={
            "MODEL": "GPT2Model",
            "MODEL_FOR_CAUSAL_LM": "GPT2LMHeadModel",
            "MODEL_FOR_SEQUENCE_CLASSIFICATION": "GPT2ForSequenceClassification",
            "MODEL_FOR_TOKEN_CLASSIFICATION": "GPT2ForTokenClassification",
            "MODEL_FOR_QUESTION_ANSWERING": "GPT2ForQuestionAnswering",
        },
        config_test={"n_embd": 48},
        at_least=100,
    ),
    "vit": Architecture(
        config="ViTConfig",
        tester="ViTTester",
        heads={"MODEL": "ViTModel", "MODEL_FOR_IMAGE_CLASSIFICATION": "ViTForImageClassification"},
        config_test={"has_text_modality": False, "hidden_size": 36},
        at_least=90,
        attributes={"test_resize_embeddings": False},
        not_applicable={"test_model_get_set_embeddings": "A vision transformer embeds patches by a convolution"},
    ),
    "resnet": Architecture(
        config="ResNetConfig",
        tester="ResNetTester",
        heads={"MODEL": "ResNetModel", "MODEL_FOR_IMAGE_CLASSIFICATION": "ResNetForImageClassification"},
        config_test={"has_text_modality": False, "common_properties": ["num_channels", "hidden_sizes"]},
        at_least=65,
        attributes={"test_resize_embeddings": False, "has_attentions": False},
        not_applicable={"test_model_get_set_embeddings": "A convolutional network has no embedding of tokens"},
    ),
}


def load(architecture: Architecture, arm: str) -> tuple[type, tuple[type, ...]]:
    """The config class and the model classes; AttributeError where the package has no such name."""
    package, prefix = ARMS[arm]
    module: ModuleType = importlib.import_module(package)
    config = getattr(module, prefix + architecture.config)
    return config, tuple(getattr(module, prefix + name) for name in architecture.heads.values())


def enter_names(architecture: Architecture, config: type, heads: tuple[type, ...]) -> None:
    """Enter the class names into transformers' tables, as a model inside transformers would be.

    ModelTesterMixin looks there, by name, for what a head is: it makes no labels for a head that it does not find,
    and `test_problem_types` among others then passes without having tested anything.
    """
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for table, head in zip(architecture.heads, heads, strict=True):
        getattr(auto, f"{table}_MAPPING_NAMES")[config.model_type] = head.__name__
