"""What one step computes: some tokens of some sequences, packed end to end.

Dimensions, as suffixes of tensor names:
    T  tokens of all rows, end to end       R  rows
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_neuron.model.spec import PAGE

__all__ = ["PAGE", "Batch", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence in a step; decoding has one token, a chunk of a prompt has many."""

    start: int
    stop: int
    """Its tokens are [start, stop) of the T axis."""
    past: int
    """Tokens of the sequence whose keys and values are in the cache already."""
    pages: tuple[int, ...]
    """Where its keys and values are, in order: they cover `past + stop - start` tokens."""
    slot: int = 0
    """Where its states are, which must be those after `past` tokens; 0 is scratch."""

    @property
    def length(self) -> int:
        """Tokens in the cache once the step has run."""
        return self.past + self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: its tokens, and for each row where its keys and values belong."""

    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    """Where each token's key and value are written: page * PAGE + offset."""
    rows: tuple[Row, ...]
    ends_R: Tensor
    """The place on the T axis of each row's last token, whose logits are wanted."""

    @classmethod
    def of(
        cls,
        rows: Sequence[tuple[Sequence[int], int, Sequence[int]]],
        device: torch.device | str = "cpu",
        state_slots: Sequence[int] | None = None,
    ) -> "Batch":
        """Pack rows of (tokens, past, pages); `state_slots` are one a row, or all 0."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        spans: list[Row] = []
        for (row_tokens, past, pages), slot in zip(rows, state_slots or [0] * len(rows), strict=True):
            start = len(tokens)
            tokens += row_tokens
            span = range(past, past + len(row_tokens))
            positions += span
            slots += [pages[p // PAGE] * PAGE + p % PAGE for p in span]
            spans.append(Row(start, len(tokens), past, tuple(pages[: -(-span.stop // PAGE)]), slot))
        ends = [row.stop - 1 for row in spans]
        # One transfer to the device instead of four.
        packed = torch.tensor(tokens + positions + slots + ends).to(device)
        num = len(tokens)
        tokens_T, positions_T, slots_T, ends_R = torch.split(packed, [num, num, num, len(ends)])
        return cls(tokens_T, positions_T, slots_T, tuple(spans), ends_R)
