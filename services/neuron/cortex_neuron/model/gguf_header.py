"""The header of a GGUF file in Hugging Face's names: settings, and where each tensor lies; no torch here.

The package `gguf` reads headers too, but builds an object per vocabulary entry and takes seconds.
Source: ggml/docs/gguf.md in ggml-org/ggml, versions 2 and 3.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from cortex_proto.errors import LoadFailedError

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32 = 0
_ROPE_FACTORS = "rope_freqs.weight"

_EOS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
_SETTINGS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class TensorAt:
    """One tensor: its shape as Hugging Face has it, ggml's number for its type, and its first byte."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """Settings without the arrays (vocabulary, merges), and the tensors in file order."""

    path: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, TensorAt]

    @property
    def architecture(self) -> str:
        """What the file calls its kind of model."""
        return str(self.settings.get("general.architecture"))


def read(path: Path) -> Header:
    """Read the header.

    Raises:
        LoadFailedError: it is no GGUF file of version 2 or 3, damaged, or one part of several.
    """
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            header = _Cursor(mapped).header(path)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise LoadFailedError(f"cannot read {path} as GGUF: {error}") from error
    if header.settings.get("split.count", 1) > 1:
        raise LoadFailedError(f"{path} is one part of several; merge them first")
    return header


def as_config(header: Header) -> dict[str, Any]:
    """Spell the settings as config.json would."""
    own = header.settings
    arch = header.architecture
    config = {theirs: own[f"{arch}.{key}"] for key, theirs in _SETTINGS.items() if f"{arch}.{key}" in own}
    names = as_shapes(header)
    embedding = names.get("model.embed_tokens.weight")
    return config | {
        "model_type": arch if not own.get(f"{arch}.expert_count") else f"{arch} with experts",
        "vocab_size": embedding[0] if embedding else 0,
        "eos_token_id": tuple(dict.fromkeys(own[key] for key in _EOS if key in own)),
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in names,
        "rope_parameters": _rope(header),
        "rope_divisors": _rope_divisors(header),
    }


def as_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Give the shape of every weight under its Hugging Face name."""
    return {hf_name(n): t.shape for n, t in header.tensors.items() if n != _ROPE_FACTORS}


def hf_name(name: str) -> str:
    """Translate a tensor's name; one that is not known stays as it is."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in _IN_BLOCK:
        return f"model.layers.{block[1]}.{_IN_BLOCK[block[2]]}.{kind}"
    return name


def _rope(header: Header) -> dict[str, Any]:
    arch, own = header.architecture, header.settings
    num_heads = own.get(f"{arch}.attention.head_count") or 1
    width = own.get(f"{arch}.attention.key_length") or own.get(f"{arch}.embedding_length", 0) // num_heads
    kind = own.get(f"{arch}.rope.scaling.type", "none")
    return {
        "rope_type": "default" if kind == "none" else kind,
        "factor": own.get(f"{arch}.rope.scaling.factor", 1.0),
        "partial_rotary_factor": own.get(f"{arch}.rope.dimension_count", width) / width if width else 1.0,
    }


def _rope_divisors(header: Header) -> tuple[float, ...]:
    """Read the divisors of the rotary frequencies, which GGUF keeps as a little tensor."""
    factors = header.tensors.get(_ROPE_FACTORS)
    if factors is None:
        return ()
    if factors.type != _F32:
        raise LoadFailedError(f"{header.path}: {_ROPE_FACTORS} is not of type F32")
    with header.path.open("rb") as file:
        file.seek(factors.offset)
        return struct.unpack(f"<{factors.shape[0]}f", file.read(4 * factors.shape[0]))


class _Cursor:
    """Reads one value after another."""

    def __init__(self, mapped: mmap) -> None:
        self.mapped = mapped
        self.at = 0

    def header(self, path: Path) -> Header:
        if self.mapped[:4] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version, num_tensors, num_settings = self.scalar("I"), self.scalar("Q"), self.scalar("Q")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported; supported: 2, 3")
        pairs = [(self.string(), self.value(self.scalar("I"))) for _ in range(num_settings)]
        settings = {name: value for name, value in pairs if value is not None}
        tensors = dict(self.tensor() for _ in range(num_tensors))
        alignment = settings.get("general.alignment", 32)
        base = -(-self.at // alignment) * alignment
        placed = {name: TensorAt(t.shape, t.type, base + t.offset) for name, t in tensors.items()}
        return Header(path, settings, placed)

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.mapped, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.at += length
        return self.mapped[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.skip_array()
        return self.scalar(_SCALARS[kind])

    def skip_array(self) -> None:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            for _ in range(count):
                length = self.scalar("Q")
                self.at += length
        elif kind == _ARRAY:
            for _ in range(count):
                self.skip_array()
        else:
            self.at += count * struct.calcsize("<" + _SCALARS[kind])

    def tensor(self) -> tuple[str, TensorAt]:
        name, num_dims = self.string(), self.scalar("I")
        dims = [self.scalar("Q") for _ in range(num_dims)]
        return name, TensorAt(tuple(reversed(dims)), self.scalar("I"), self.scalar("Q"))
