# SPDX-License-Identifier: Apache-2.0
"""Small configs and inputs. The same tester serves the vanilla classes and ours: only the config class differs."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from ..test_modeling_common import floats_tensor, ids_tensor, random_attention_mask


class Tester:
    """What `ModelTesterMixin` reads from a tester; `flags` reach the config class as they are (our norm flags)."""

    batch_size = 7
    is_training = True
    num_labels = 3
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    initializer_range = 0.02

    def __init__(self, config_class: type[PreTrainedConfig], heads: tuple[type, ...], flags: dict[str, object]) -> None:
        self.config_class = config_class
        self.flags = flags
        # TrainingTesterMixin trains this one; without it, the first class that has no loss.
        self.causal_lm_class = next((c for c in heads if c.can_generate()), None)

    def settings(self) -> dict[str, object]:
        raise NotImplementedError

    def inputs(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def complete(self, inputs: dict[str, torch.Tensor], model_class: type, *, labels: bool) -> dict[str, torch.Tensor]:
        """What `ModelTesterMixin` cannot know that a head takes, where its loss is asked for."""
        return inputs

    def get_config(self) -> PreTrainedConfig:
        return self.config_class(**self.settings(), **self.flags)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        return self.get_config(), self.inputs()


class TextTester(Tester):
    seq_length = 7
    vocab_size = 99

    def inputs(self) -> dict[str, torch.Tensor]:
        shape = [self.batch_size, self.seq_length]
        # Token 0 pads: without it among the ids, each sequence classifier reads the last token of every row.
        ids = ids_tensor(shape, self.vocab_size - 1) + 1
        return {"input_ids": ids, "attention_mask": random_attention_mask(shape)}


class LlamaTester(TextTester):
    def settings(self) -> dict[str, object]:
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 64,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "initializer_range": self.initializer_range,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "num_labels": self.num_labels,
        }


class WideHeadTester(LlamaTester):
    """For configs whose heads have a width of their own."""

    def settings(self) -> dict[str, object]:
        return {**super().settings(), "head_dim": 16}


class BertTester(TextTester):
    num_choices = 4
    num_labels = 2  # of an answer to a question, two ends are asked

    def complete(self, inputs: dict[str, torch.Tensor], model_class: type, *, labels: bool) -> dict[str, torch.Tensor]:
        if labels and model_class.__name__.endswith("ForPreTraining"):
            shape = [self.batch_size, self.seq_length]
            zeros = {"labels": torch.zeros(shape).long(), "next_sentence_label": torch.zeros(self.batch_size).long()}
            return {**inputs, **zeros}
        return inputs

    def settings(self) -> dict[str, object]:
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 64,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": 512,
            "initializer_range": self.initializer_range,
            "pad_token_id": 0,
            "num_labels": self.num_labels,
        }


class GPT2Tester(TextTester):
    def settings(self) -> dict[str, object]:
        return {
            "vocab_size": self.vocab_size,
            "n_embd": self.hidden_size,
            "n_inner": 64,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "n_positions": 512,
            "initializer_range": self.initializer_range,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "num_labels": self.num_labels,
        }


class ImageTester(Tester):
    num_channels = 3
    image_size = 32

    def inputs(self) -> dict[str, torch.Tensor]:
        return {"pixel_values": floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])}


class ViTTester(ImageTester):
    patch_size = 8
    mask_length = (32 // 8) ** 2  # patches, of which half are masked where a test asks for masked images
    num_masks = mask_length // 2
    seq_length = mask_length + 1  # the class token

    def settings(self) -> dict[str, object]:
        return {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_channels": self.num_channels,
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": self.initializer_range,
            "num_labels": self.num_labels,
        }


class ResNetTester(ImageTester):
    # The common test of hidden states compares their last two sizes with these: rows and columns of the stem's output.
    seq_length = hidden_size = 32 // 4

    def settings(self) -> dict[str, object]:
        return {
            "num_channels": self.num_channels,
            "embedding_size": 10,
            "hidden_sizes": [10, 20],
            "depths": [1, 1],
            "layer_type": "basic",
            "num_labels": self.num_labels,
        }
