"""What a checkpoint's config says, in the spelling of any architecture; no torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import msgspec

from cortex_neuron.model.rope import RopeConfig
from cortex_neuron.model.shard import Shard

Shape = tuple[int, ...]
LayerType = Literal["full_attention", "linear_attention"]
FULL: LayerType = "full_attention"


@dataclass(frozen=True, slots=True)
class DeltaSpec:
    """The recurrent layers of a model: none, unless said otherwise."""

    num_k_heads: int = 0
    num_v_heads: int = 0
    k_dim: int = 0
    """Width of one key, and of one query."""
    v_dim: int = 0
    num_taps: int = 1
    """Inputs that the convolution mixes, this token's own included."""

    def part(self, shard: Shard) -> Self:
        """Describe what one rank has of them."""
        return replace(
            self,
            num_k_heads=shard.kv_heads(self.num_k_heads).size,
            num_v_heads=shard.span(self.num_v_heads).size,
        )

    @property
    def k_width(self) -> int:
        """Width of all keys."""
        return self.num_k_heads * self.k_dim

    @property
    def v_width(self) -> int:
        """Width of all values."""
        return self.num_v_heads * self.v_dim

    @property
    def state_shape(self) -> Shape:
        """What one layer remembers of one sequence: a matrix a head."""
        return (self.num_v_heads, self.k_dim, self.v_dim)

    @property
    def tail_shape(self) -> Shape:
        """The last inputs of one layer's convolution."""
        return (2 * self.k_width + self.v_width, self.num_taps - 1)


NO_DELTA = DeltaSpec()


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """The sparse MLPs of a model: none, unless said otherwise."""

    layers: frozenset[int] = frozenset()
    """Which layers have one; the others have a plain MLP."""
    num_experts: int = 0
    num_chosen: int = 0
    """Experts that a token goes through."""
    intermediate_dim: int = 0
    """Width inside one expert."""
    shared_dim: int = 0
    """Width inside the expert that every token goes through; 0: there is none."""
    renormalises: bool = True
    """Whether the weights of the chosen add up to 1."""


NO_EXPERTS = ExpertsSpec()
_Count = Annotated[int, msgspec.Meta(gt=0)]


class Config(msgspec.Struct, frozen=True):
    """The keys of config.json that shape the computation; a GGUF header is read into the same."""

    hidden_size: _Count
    intermediate_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count
    vocab_size: _Count
    model_type: str
    max_position_embeddings: _Count = 2048
    num_key_value_heads: _Count | None = None
    head_dim: _Count | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    eos_token_id: int | tuple[int, ...] | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeConfig | None = None
    rope_parameters: RopeConfig | None = None
    rope_divisors: tuple[float, ...] = ()
    """Only from GGUF, which stores them as a tensor instead of naming the rule."""
    quantization_config: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    attn_output_gate: bool = True
    layer_types: tuple[str, ...] | None = None
    full_attention_interval: _Count = 4
    linear_num_key_heads: _Count = 16
    linear_num_value_heads: _Count = 32
    linear_key_head_dim: _Count = 128
    linear_value_head_dim: _Count = 128
    linear_conv_kernel_dim: _Count = 4
    num_experts: _Count | None = None
    num_local_experts: _Count | None = None
    num_experts_per_tok: _Count = 8
    moe_intermediate_size: _Count | None = None
    shared_expert_intermediate_size: int = 0
    norm_topk_prob: bool | None = None
    decoder_sparse_step: _Count = 1
    mlp_only_layers: tuple[int, ...] | None = None


Extras = dict[str, Any]


def _biases(c: Config) -> Extras:
    return {"qkv_bias": c.attention_bias, "output_bias": c.attention_bias}


def _hybrid(c: Config) -> Extras:
    """Read what Qwen3.5 and Qwen3-Next share: gated attention among recurrent layers."""
    if not c.attn_output_gate:
        raise ValueError("attention without an output gate is not supported in this architecture")
    if c.linear_num_value_heads % c.linear_num_key_heads:
        raise ValueError(
            f"{c.linear_num_value_heads} linear value heads cannot share {c.linear_num_key_heads} key heads"
        )
    delta = DeltaSpec(
        c.linear_num_key_heads,
        c.linear_num_value_heads,
        c.linear_key_head_dim,
        c.linear_value_head_dim,
        c.linear_conv_kernel_dim,
    )
    return _biases(c) | {
        "qk_norm": True,
        "centered_norms": True,
        "layer_types": _layer_types(c),
        "delta": delta,
    }


def _layer_types(c: Config) -> tuple[LayerType, ...]:
    numbers = range(1, c.num_hidden_layers + 1)
    every_nth = (FULL if n % c.full_attention_interval == 0 else "linear_attention" for n in numbers)
    layer_types = msgspec.convert(c.layer_types or tuple(every_nth), tuple[LayerType, ...])
    if len(layer_types) != c.num_hidden_layers:
        raise ValueError(f"layer_types names {len(layer_types)} layers, there are {c.num_hidden_layers}")
    return layer_types


def _experts(c: Config, *, renormalises: bool) -> ExpertsSpec:
    """Read the sparse layers; `renormalises` holds where the config is silent."""
    num_experts = c.num_experts or c.num_local_experts
    if num_experts is None or c.moe_intermediate_size is None or num_experts < c.num_experts_per_tok:
        raise ValueError(
            "num_experts and moe_intermediate_size are needed, and no more chosen experts than there are"
        )
    dense = c.mlp_only_layers or ()
    numbers = range(c.num_hidden_layers)
    return ExpertsSpec(
        layers=frozenset(i for i in numbers if i not in dense and (i + 1) % c.decoder_sparse_step == 0),
        num_experts=num_experts,
        num_chosen=c.num_experts_per_tok,
        intermediate_dim=c.moe_intermediate_size,
        shared_dim=c.shared_expert_intermediate_size,
        renormalises=renormalises if c.norm_topk_prob is None else c.norm_topk_prob,
    )


# What each architecture adds to the common shape. A new one also needs its line in load.py.
EXTRAS: Mapping[str, Callable[[Config], Extras]] = {
    "llama": lambda c: _biases(c) | {"mlp_bias": c.mlp_bias},
    "qwen2": lambda _: {"qkv_bias": True},
    "qwen3": lambda c: _biases(c) | {"qk_norm": True},
    "qwen3_moe": lambda c: _biases(c) | {"qk_norm": True, "experts": _experts(c, renormalises=False)},
    "qwen3_next": lambda c: _hybrid(c) | {"experts": _experts(c, renormalises=True)},
    "qwen3_5": _hybrid,
    "qwen3_5_moe": lambda c: _hybrid(c) | {"experts": _experts(c, renormalises=True)},
}
_HYBRIDS = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_moe"})


def text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Unwrap the text model of one that also sees; a text model saved alone is called so."""
    text = raw.get("text_config")
    merged = {**raw, **text} if isinstance(text, dict) else dict(raw)
    if raw.get("eos_token_id") is not None:
        merged["eos_token_id"] = raw["eos_token_id"]
    if "moe_intermediate_size" in merged:
        merged.setdefault("intermediate_size", merged["moe_intermediate_size"])
    if isinstance(architecture := raw.get("model_type"), str):
        merged["model_type"] = architecture.removesuffix("_text")
    return merged


def rotary_dim(config: Config, rotary: RopeConfig, head_dim: int) -> int:
    """Count the widths of a head that turn."""
    hybrid = config.model_type in _HYBRIDS
    factor = rotary.partial_rotary_factor or config.partial_rotary_factor or (0.25 if hybrid else 1.0)
    if factor != 1.0 and not hybrid:
        raise ValueError(f"rotates {factor:g} of each head; only whole heads are supported")
    return int(head_dim * factor)
