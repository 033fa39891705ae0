"""What a model is and what it takes, read from the headers of its checkpoint; no torch here.

The neuron asks this before a load, to refuse what it cannot run and to book the memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import msgspec

from cortex_neuron.model import gguf_header, hf_directory, shard
from cortex_neuron.model.config import (
    EXTRAS,
    FULL,
    NO_DELTA,
    NO_EXPERTS,
    Config,
    DeltaSpec,
    ExpertsSpec,
    Extras,
    LayerType,
    rotary_dim,
    text_config,
)
from cortex_neuron.model.layout import is_read
from cortex_neuron.model.rope import Rope, RopeConfig, rope
from cortex_neuron.model.shard import Shard
from cortex_proto.errors import LoadFailedError

SUPPORTED = tuple(EXTRAS)
PAGE = 64
"""Tokens whose keys and values one page holds."""
HEAD_WEIGHT = "lm_head.weight"
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KEPT_IN_FLOAT32 = (
    ".linear_attn.A_log",
    ".linear_attn.dt_bias",
    ".linear_attn.norm.weight",
    ".mlp.gate.weight",
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder-only transformer; names of tensors and settings are Hugging Face's."""

    architecture: str
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: Rope
    context: int
    """Longest sequence it was made for, in tokens."""
    eos_ids: tuple[int, ...]
    """Any of these ends an answer."""
    tied: bool
    """Whether the head is the embedding table."""
    num_parameters: int
    """Of the checkpoint, a tied table counted once."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    centered_norms: bool = False
    """Whether the weights of norms are stored less 1."""
    layer_types: tuple[LayerType, ...] = ()
    """What mixes the tokens, layer by layer."""
    rotary_dim: int = 0
    """So many of the first widths of a head are rotated."""
    delta: DeltaSpec = NO_DELTA
    experts: ExpertsSpec = NO_EXPERTS
    num_float32_parameters: int = 0
    """So many of `num_parameters` are held in float32 whatever the dtype of the others."""

    @property
    def num_attention_layers(self) -> int:
        """Layers that keep keys and values."""
        return self.layer_types.count(FULL)

    @property
    def num_delta_layers(self) -> int:
        """Layers that keep a state."""
        return self.num_layers - self.num_attention_layers


def read_spec(path: Path) -> ModelSpec:
    """Read what the model is from a Hugging Face directory or the header of a GGUF file.

    Raises:
        LoadFailedError: nothing there, damaged, or of a kind that the engine cannot run; the text
            says what is supported.
    """
    if path.is_dir():
        raw, shapes = hf_directory.read_config(path), hf_directory.read_shapes
        return _spec(path, raw, lambda: shapes(path))
    if path.suffix == ".gguf" and path.is_file():
        header = gguf_header.read(path)
        return _spec(path, gguf_header.as_config(header), lambda: gguf_header.as_shapes(header))
    raise LoadFailedError(f"{path} is neither a model directory nor a .gguf file")


def _spec(
    path: Path, raw: Mapping[str, Any], shapes: Callable[[], Mapping[str, tuple[int, ...]]]
) -> ModelSpec:
    raw = text_config(raw)
    architecture = raw.get("model_type")
    if architecture not in EXTRAS:
        raise LoadFailedError(
            f"{path}: model_type {architecture!r} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    try:
        config = msgspec.convert(raw, Config)
        _check(config)
        return _normalised(config, shapes())
    except (msgspec.ValidationError, ValueError) as error:
        raise LoadFailedError(f"{path}: {error}") from error


def _check(config: Config) -> None:
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act {config.hidden_act!r} is not supported; supported: silu")
    if config.quantization_config is not None:
        raise ValueError("quantised safetensors are not supported; supported: float32, bfloat16, float16")
    if config.use_sliding_window:
        raise ValueError("sliding-window attention is not supported")
    if config.num_attention_heads % (config.num_key_value_heads or config.num_attention_heads):
        raise ValueError(
            f"{config.num_attention_heads} heads cannot share {config.num_key_value_heads} kv heads"
        )


def _normalised(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> ModelSpec:
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    rotary = config.rope_parameters or config.rope_scaling or RopeConfig()
    theta = rotary.rope_theta or config.rope_theta
    turning = rotary_dim(config, rotary, head_dim)
    tied = config.tie_word_embeddings or HEAD_WEIGHT not in shapes
    eos = config.eos_token_id
    counts = {n: prod(s) for n, s in shapes.items() if is_read(n) and not (tied and n == HEAD_WEIGHT)}
    common: Extras = {"layer_types": (FULL,) * config.num_hidden_layers}
    return ModelSpec(
        architecture=config.model_type,
        num_layers=config.num_hidden_layers,
        dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        intermediate_dim=config.intermediate_size,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        rope=Rope(theta, config.rope_divisors) if config.rope_divisors else rope(rotary, theta, turning),
        context=config.max_position_embeddings,
        eos_ids=() if eos is None else (eos,) if isinstance(eos, int) else eos,
        tied=tied,
        num_parameters=sum(counts.values()),
        num_float32_parameters=sum(num for name, num in counts.items() if name.endswith(_KEPT_IN_FLOAT32)),
        rotary_dim=turning,
        **(common | EXTRAS[config.model_type](config)),
    )


def check_world(spec: ModelSpec, world: int) -> None:
    """See that `world` ranks can share this model.

    Raises:
        LoadFailedError: they cannot; the text has the numbers.
    """
    shared = {
        "query heads": spec.num_heads,
        "columns of the MLP": spec.intermediate_dim,
        "columns of an expert": spec.experts.intermediate_dim,
        "columns of the shared expert": spec.experts.shared_dim,
        "linear value heads": spec.delta.num_v_heads,
    }
    shard.check(world, shared, num_kv_heads=spec.num_kv_heads)
    if spec.num_delta_layers:
        shard.check(world, {}, num_kv_heads=spec.delta.num_k_heads)


def kv_page_bytes(spec: ModelSpec, dtype: str, world: int = 1) -> int:
    """Memory of one page on one of `world` ranks: keys and values of PAGE tokens, where a layer has them."""
    num_heads = Shard(0, world).kv_heads(spec.num_kv_heads).size
    return 2 * spec.num_attention_layers * PAGE * num_heads * spec.head_dim * DTYPE_BYTES[dtype]


def state_slot_bytes(spec: ModelSpec, dtype: str, world: int = 1) -> int:
    """Memory of one slot on one of `world` ranks: what recurrent layers remember of one sequence."""
    delta = spec.delta.part(Shard(0, world))
    matrix, tail = prod(delta.state_shape), prod(delta.tail_shape)
    return spec.num_delta_layers * (4 * matrix + DTYPE_BYTES[dtype] * tail)


@dataclass(frozen=True, slots=True)
class Step:
    """The biggest step that is asked for."""

    max_batch: int = 32
    prefill_tokens: int = 256

    @property
    def num_snapshots(self) -> int:
        """States that are kept to go on from, each as big as 1,600 tokens of keys and values or more."""
        return -(-self.max_batch // 2)

    @property
    def num_slots(self) -> int:
        """States that there is room for: one to scribble in, one a row, and the snapshots."""
        return 1 + self.max_batch + self.num_snapshots


DEFAULT_STEP = Step()


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one load takes of each device, in bytes, beside keys and values."""

    weight_bytes: int
    state_bytes: int
    workspace_bytes: int
    process_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.state_bytes + self.workspace_bytes + self.process_bytes


CPU_PROCESS_BYTES = 320 * 2**20
"""A rank without its weights; with torch 2.13 on Linux 220 MiB after the import, 300 after some steps."""


def footprint(
    spec: ModelSpec,
    dtype: str,
    step: Step = DEFAULT_STEP,
    device: Literal["cpu", "cuda"] = "cpu",
    world: int = 1,
) -> Footprint:
    """Work out what a load takes of each device before it is tried, one of `world` ranks on each.

    On the CPU a tied table counts twice: once for lookups, once packed for the logits. A CUDA
    context is not counted, because it is no part of what one model adds to a GPU's budget.
    """
    size = DTYPE_BYTES[dtype]
    packed_head = _share(spec.vocab_size, world) * spec.dim if spec.tied and device == "cpu" else 0
    return Footprint(
        weight_bytes=(_parameters_of_leader(spec, world) + packed_head) * size
        + spec.num_float32_parameters * (4 - size),
        state_bytes=step.num_slots * state_slot_bytes(spec, dtype, world),
        workspace_bytes=_workspace_bytes(_part_of(spec, world), size, step),
        process_bytes=CPU_PROCESS_BYTES if device == "cpu" else 0,
    )


def _part_of(spec: ModelSpec, world: int) -> ModelSpec:
    """Describe what one of `world` ranks computes."""
    return replace(
        spec,
        num_heads=spec.num_heads // world,
        num_kv_heads=Shard(0, world).kv_heads(spec.num_kv_heads).size,
        intermediate_dim=spec.intermediate_dim // world,
        delta=spec.delta.part(Shard(0, world)),
    )


def _parameters_of_leader(spec: ModelSpec, world: int) -> int:
    """Count the parameters on rank 0, which has the most.

    Norms and routers are on every rank, the biases behind the sums on the leader, and key heads
    that are fewer than ranks on several; the vocabulary is filled up to equal shares.
    """
    delta, num_attending = spec.delta, spec.num_attention_layers
    kv = 2 * num_attending * spec.num_kv_heads * spec.head_dim * (spec.dim + spec.qkv_bias)
    linear_qk = 2 * spec.num_delta_layers * delta.k_width * (spec.dim + delta.num_taps)
    vocab = spec.vocab_size * spec.dim * (1 if spec.tied else 2)
    norms = (2 * spec.num_layers + 1) * spec.dim + spec.qk_norm * 2 * num_attending * spec.head_dim
    norms += spec.num_delta_layers * delta.v_dim
    routers = len(spec.experts.layers) * (spec.experts.num_experts + bool(spec.experts.shared_dim)) * spec.dim
    whole = norms + routers + spec.num_layers * spec.dim * (spec.output_bias + spec.mlp_bias)
    rest = spec.num_parameters - whole - kv - linear_qk - vocab
    heads = Shard(0, world).kv_heads
    kv_share = kv // spec.num_kv_heads * heads(spec.num_kv_heads).size
    linear_share = linear_qk // max(1, delta.num_k_heads) * heads(delta.num_k_heads).size
    vocab_share = vocab // spec.vocab_size * _share(spec.vocab_size, world)
    return whole + _share(rest, world) + kv_share + linear_share + vocab_share


def _share(num: int, world: int) -> int:
    return Shard(0, world).share(num)


def _workspace_bytes(spec: ModelSpec, size: int, step: Step) -> int:
    """Add up what lives at the same time in the widest moment of a step, generously.

    Per token: the stream and its sums (4 widths, 2 more in float32), q, k and v plain and turned,
    gate, up and their product. Per row of the batch: the logits, also in float32, and the sampler's
    sorted copy. Once: the mask of a chunk with a full past, as truth values and as numbers, and
    one row's gathered keys and values. Recurrent layers hold, in float32, some 8 keys and values of
    every token and 4 matrices of a chunk's width, and of every row its state, read and written.
    """
    qkv_width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    a_token = size * (4 * spec.dim + 2 * qkv_width + 4 * spec.intermediate_dim) + 8 * spec.dim
    a_row = spec.vocab_size * (size + 4 + 12)
    mask = step.prefill_tokens * spec.context * (1 + size)
    gathered = 2 * spec.context * spec.num_kv_heads * spec.head_dim * size
    delta = spec.delta
    a_token += 4 * delta.num_v_heads * (8 * (delta.k_dim + delta.v_dim) + 4 * PAGE)
    a_row += 8 * prod(delta.state_shape)
    return (step.max_batch + step.prefill_tokens) * a_token + step.max_batch * a_row + mask + gathered
