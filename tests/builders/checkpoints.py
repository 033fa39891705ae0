"""Tiny random checkpoints, written by transformers itself, so that it can be the oracle."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map, quants
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from builders.blocks import gguf_blocks
from builders.tokenizers import CHAT_TEMPLATE, SPECIAL_TOKENS

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
_HYBRID: dict[str, Any] = _TINY | {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    # With wider weights transformers' own two forms of the delta rule differ by 8e-4 in the logits.
    "initializer_range": 0.05,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
}
_SHARED: dict[str, Any] = {"shared_expert_intermediate_size": 40}
_EYES: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
"""Settings of a rotation as Llama 3 scales it."""


def write_llama(path: Path, *, max_shard_size: str = "1GB", **overrides: Any) -> Path:
    """Write a Llama of 0.2 M random parameters to the directory `path`; `overrides` go to its config."""
    return _write(LlamaForCausalLM(LlamaConfig(**(_TINY | overrides))), path, max_shard_size)


def write_qwen2(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen2, which differs in the biases of q, k and v."""
    return _write(Qwen2ForCausalLM(Qwen2Config(**(_TINY | overrides))), path)


def write_qwen3(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen3, which differs in the norms of q and k; its heads are wider than hidden / heads."""
    return _write(Qwen3ForCausalLM(Qwen3Config(**(_TINY | {"head_dim": 32} | overrides))), path)


def write_qwen3_moe(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen3-MoE: Qwen3 with routed experts."""
    config = Qwen3MoeConfig(**(_TINY | {"head_dim": 32} | _EXPERTS | overrides))
    return _write(Qwen3MoeForCausalLM(config), path)


def write_qwen3_next(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen3-Next: three recurrent layers, one that attends, experts in all."""
    config = Qwen3NextConfig(**(_HYBRID | _EXPERTS | _SHARED | overrides))
    return _write(Qwen3NextForCausalLM(config), path)


def write_qwen3_5(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen3.5 of text alone: three recurrent layers, one that attends."""
    return _write(Qwen3_5ForCausalLM(Qwen3_5TextConfig(**(_HYBRID | overrides))), path)


def write_qwen3_5_with_eyes(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen3.5 as it is released: the text model inside one that sees."""
    config = Qwen3_5Config(text_config=_HYBRID | overrides, vision_config=_EYES)
    return _write(Qwen3_5ForConditionalGeneration(config), path)


def write_qwen3_5_moe(path: Path, **overrides: Any) -> Path:
    """Write a tiny Qwen3.5-MoE, which differs in its experts."""
    config = Qwen3_5MoeTextConfig(**(_HYBRID | _EXPERTS | _SHARED | overrides))
    return _write(Qwen3_5MoeForCausalLM(config), path)


def as_released(directory: Path) -> Path:
    """Rewrite a checkpoint as Qwen3.5-MoE is released: the experts of a layer fused, and an MTP head."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    fused: dict[str, dict[int, torch.Tensor]] = {}
    for name in [name for name in tensors if ".mlp.experts." in name]:
        prefix, _, rest = name.partition(".experts.")
        expert, kind, _ = rest.split(".")
        fused.setdefault(f"{prefix}.experts.{kind}", {})[int(expert)] = tensors.pop(name)
    stacked = {name: torch.stack([parts[i] for i in sorted(parts)]) for name, parts in fused.items()}
    for name, gate in stacked.items():
        if name.endswith(".gate_proj"):
            up = stacked[name.replace(".gate_proj", ".up_proj")]
            tensors[name.replace(".gate_proj", ".gate_up_proj")] = torch.cat([gate, up], dim=1)
        elif name.endswith(".down_proj"):
            tensors[name] = gate
    tensors["mtp.fc.weight"] = torch.randn(64, 128)
    tensors["mtp.layers.0.mlp.experts.0.down_proj.weight"] = torch.randn(64, 48)
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def _write(model: PreTrainedModel, path: Path, max_shard_size: str = "1GB") -> Path:
    config: PretrainedConfig = model.config
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _randomise(name, weight, config.get_text_config().initializer_range)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def _randomise(name: str, weight: torch.Tensor, spread: float) -> None:
    """Norms at 1 and biases at 0, as transformers leaves them, would hide their errors."""
    if "norm" in name:
        weight.uniform_(0.5, 1.5)
    elif name.endswith("A_log"):
        weight.uniform_(-4.0, 2.0)
    elif name.endswith("dt_bias"):
        weight.uniform_(-2.0, 2.0)
    elif "conv1d" in name:
        weight.uniform_(-0.5, 0.5)
    else:
        weight.normal_(0.0, spread)


def write_gguf(
    path: Path, directory: Path, *, quantisation: str = "F32", rope_factors: tuple[float, ...] = ()
) -> Path:
    """Convert a `directory` to the GGUF file `path`, as llama.cpp's converter would."""
    config: Any = AutoConfig.from_pretrained(directory)
    arch = MODEL_ARCH[config.model_type.upper()]
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    writer = GGUFWriter(path, config.model_type)
    _add_settings(writer, config)
    if (directory / "tokenizer.json").exists():
        _add_tokenizer(writer, directory)
    if rope_factors:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors, dtype=np.float32))
    for name, tensor in load_file(directory / "model.safetensors").items():
        kind = _kind(tensor, quantisation)
        stored = gguf_blocks(tensor.numpy(), kind)
        if arch is MODEL_ARCH.LLAMA:
            stored = _permuted(name, stored, config)
        gguf_name = str(names.get_name(name, try_suffixes=(".weight", ".bias")))
        writer.add_tensor(gguf_name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_rounded(path: Path, directory: Path, quantisation: str) -> Path:
    """Copy `directory` to `path` with the weights that `write_gguf` leaves of it."""
    shutil.copytree(directory, path)
    rounded = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        kind = _kind(tensor, quantisation)
        rounded[name] = torch.from_numpy(quants.dequantize(gguf_blocks(tensor.numpy(), kind), kind).copy())
    save_file(rounded, path / "model.safetensors", {"format": "pt"})
    return path


def _kind(tensor: Tensor, quantisation: str) -> GGMLQuantizationType:
    """Norms and biases stay in float32, as converters leave them."""
    return GGMLQuantizationType[quantisation if tensor.ndim == 2 else "F32"]


def _add_settings(writer: GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(7)


def _add_tokenizer(writer: GGUFWriter, directory: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())["model"]
    special = len(SPECIAL_TOKENS)
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    control, normal = TokenType.CONTROL, TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if at < special else normal for at in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_chat_template(CHAT_TEMPLATE)


def _permuted(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Reorder the rows of q and k. Source: `LlamaModel.permute`, llama.cpp's convert_hf_to_gguf.py."""
    if ".q_proj." in name:
        heads = config.num_attention_heads
    elif ".k_proj." in name:
        heads = config.num_key_value_heads
    else:
        return values
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
