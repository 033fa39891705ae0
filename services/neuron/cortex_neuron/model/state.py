"""The memory of recurrent layers: per sequence a matrix a head and the last inputs of a convolution.

It does not grow with the sequence, so a sequence owns one slot from its first token to its last.
A rank has the heads, and their channels, that it computes.

Dimensions, as suffixes of tensor names:
    S  slots          N  value heads        C  channels of the convolution
    B  rows           K  width of a key     X  inputs that are remembered
                      V  width of a value
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cortex_neuron.model.batch import Batch, Row
from cortex_neuron.model.shard import Shard
from cortex_neuron.model.spec import ModelSpec


class StatePool:
    """The slots of all recurrent layers; slot 0 is scratch, for rows that nobody owns."""

    def __init__(
        self,
        spec: ModelSpec,
        shard: Shard,
        *,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_slots = num_slots
        delta, num_layers = spec.delta.part(shard), spec.num_delta_layers
        matrix, tail = delta.state_shape, delta.tail_shape
        self.s = torch.zeros(num_layers, num_slots, *matrix, dtype=torch.float32, device=device)
        self.tails = torch.zeros(num_layers, num_slots, *tail, dtype=dtype, device=device)

    def zero(self, slot: int) -> None:
        """Make `slot` that of a sequence with no tokens yet."""
        self.s[:, slot] = 0.0
        self.tails[:, slot] = 0.0

    def copy(self, src: int, dst: int) -> None:
        """Make `dst` what `src` is."""
        self.s[:, dst] = self.s[:, src]
        self.tails[:, dst] = self.tails[:, src]


@dataclass(frozen=True, slots=True)
class LayerState:
    """The states of one layer, as one step sees them: each row's is where its past ended."""

    s_SNKV: Tensor
    tails_SCX: Tensor
    num_decoding: int
    """So many rows in front have one token each, and are computed as one."""
    decoding_B: Tensor
    """Their slots."""
    chunks: tuple[Row, ...]
    """The other rows."""

    @classmethod
    def of(cls, batch: Batch, states: StatePool) -> list[Self]:
        """Prepare every recurrent layer for one step."""
        rows = batch.rows
        num = next((i for i, row in enumerate(rows) if row.stop - row.start > 1), len(rows))
        decoding_B = torch.tensor([row.slot for row in rows[:num]], dtype=torch.long).to(states.s.device)
        layers = zip(states.s.unbind(), states.tails.unbind(), strict=True)
        return [cls(s_SNKV, tails_SCX, num, decoding_B, rows[num:]) for s_SNKV, tails_SCX in layers]
