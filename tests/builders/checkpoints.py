"""Tiny random checkpoints, written by transformers itself, so that it can be the oracle."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "initializer_range": 0.08,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def write_llama(path: Path, *, max_shard_size: str = "1GB", **overrides: Any) -> Path:
    """Write a Llama of about 0.2 M random parameters to the directory `path`; `overrides` go to its config."""
    return _write(LlamaForCausalLM(LlamaConfig(**(_TINY | overrides))), path, max_shard_size)


def write_qwen2(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen2, which differs in the biases of q, k and v."""
    return _write(Qwen2ForCausalLM(Qwen2Config(**(_TINY | overrides))), path)


def write_qwen3(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen3, which differs in the norms of q and k; its heads are wider than hidden / heads."""
    return _write(Qwen3ForCausalLM(Qwen3Config(**(_TINY | {"head_dim": 32} | overrides))), path)


def _write(model: PreTrainedModel, path: Path, max_shard_size: str = "1GB") -> Path:
    config: PretrainedConfig = model.config
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms at 1 and biases at 0, as transformers leaves them, would hide their errors.
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0.0, config.initializer_range)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return path
