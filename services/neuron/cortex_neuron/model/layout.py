"""Where the tensors of a checkpoint go whose layout is not the one computed with; no torch here.

The engine knows one layout: names as of a text-only Qwen3.5, and a matrix per expert. What other
checkpoints store is described as pieces of it: which rows, in which order, under which name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cortex_neuron.model.config import DeltaSpec, Shape

Rows = tuple[range, ...]

SKIPPED = ("model.visual.", "mtp.")
"""Parts that the engine does not run: the eyes, and the head that guesses one token further."""
_WRAPPED = "model.language_model."
_GROUPED = re.compile(r"(.*\.linear_attn\.)in_proj_(qkvz|ba)\.weight")
_FUSED = re.compile(r"(.*\.mlp\.experts\.)(gate_up_proj|down_proj)")


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor as it is computed with, cut out of one of the checkpoint."""

    name: str
    shape: Shape
    rows: Rows = ()
    """Rows of the source, in order; none: all of it as it is."""
    expert: int | None = None
    """Its place in the first dimension, where the source holds all experts; rows are those of the expert."""


def is_read(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to what is computed."""
    return not name.startswith(SKIPPED)


def pieces(name: str, shape: Shape, delta: DeltaSpec) -> list[Piece]:
    """Say what the tensor `name` of a checkpoint holds; nothing, if it is not read."""
    if not is_read(name):
        return []
    if name.startswith(_WRAPPED):
        name = "model." + name.removeprefix(_WRAPPED)
    if (match := _GROUPED.fullmatch(name)) and delta.num_k_heads:
        return list(_ungrouped(match[1], match[2], shape, delta))
    if (match := _FUSED.fullmatch(name)) and len(shape) == 3:
        return list(_experts(match[1], match[2], shape))
    return [Piece(name, shape)]


def _ungrouped(prefix: str, kind: str, shape: Shape, delta: DeltaSpec) -> Iterator[Piece]:
    """Take Qwen3-Next's groups apart: a key head with its value heads, [q k v z] and [b a].

    Source: transformers, `Qwen3NextGatedDeltaNet.fix_query_key_value_ordering`.
    """
    shared = delta.num_v_heads // delta.num_k_heads
    v_width = shared * delta.v_dim
    widths = {"q": delta.k_dim, "k": delta.k_dim, "v": v_width, "z": v_width}
    if kind == "ba":
        widths = {"b": shared, "a": shared}
    rows = _rows_by_part(widths, delta.num_k_heads)
    for parts in ("qkv", "z") if kind == "qkvz" else ("b", "a"):
        chosen = tuple(span for part in parts for span in rows[part])
        num_rows = sum(len(span) for span in chosen)
        yield Piece(f"{prefix}in_proj_{parts}.weight", (num_rows, *shape[1:]), chosen)


def _rows_by_part(widths: dict[str, int], num_groups: int) -> dict[str, list[range]]:
    """Find each part's rows in every group."""
    rows: dict[str, list[range]] = {part: [] for part in widths}
    start = 0
    for _ in range(num_groups):
        for part, width in widths.items():
            rows[part].append(range(start, start + width))
            start += width
    return rows


def _experts(prefix: str, kind: str, shape: Shape) -> Iterator[Piece]:
    """Take a tensor of all experts apart, [experts, outputs, inputs]."""
    num_experts, num_rows, width = shape
    names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    height = num_rows // len(names)
    for expert in range(num_experts):
        for place, name in enumerate(names):
            rows = (range(place * height, (place + 1) * height),)
            yield Piece(f"{prefix}{expert}.{name}.weight", (height, width), rows, expert)
