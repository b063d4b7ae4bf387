# SPDX-License-Identifier: Apache-2.0
"""Tiny causal models with a trained tokenizer, saved in the Hub's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from ibnorm_hf import IBNormGPT2Config, IBNormLlamaConfig

TEXT = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
VOCABULARY = 512
POSITIONS = 2048  # few-shot prompts of the leaderboard are cut to it


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def make_config(kind: str, **flags: Any) -> Any:
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "vocab_size": VOCABULARY}
    if "llama" in kind:
        cls = IBNormLlamaConfig if kind.startswith("ibnorm") else LlamaConfig
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return cls(max_position_embeddings=POSITIONS, **sizes, **ids, **flags)
    cls = IBNormGPT2Config if kind.startswith("ibnorm") else GPT2Config
    return cls(n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=2, **ids, **flags)


def save_model(kind: str, folder: Path, **flags: Any) -> Path:
    """A model with weights large enough that answers differ, and its tokenizer, in ``folder``."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(kind, **flags), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
