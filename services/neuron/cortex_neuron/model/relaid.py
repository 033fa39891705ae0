"""A checkpoint in the layout that the engine computes with, cut out of the one that is stored."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_neuron.model.checkpoint import Checkpoint
from cortex_neuron.model.layout import Piece, pieces
from cortex_neuron.model.places import Source
from cortex_neuron.model.spec import ModelSpec


class Relaid:
    """Gives the tensors of another checkpoint by the names and shapes that models of `spec` have."""

    def __init__(self, stored: Checkpoint, spec: ModelSpec) -> None:
        self._stored = stored
        self._pieces = {name: pieces(name, shape, spec.delta) for name, shape in stored.shapes.items()}
        self.shapes = {piece.name: piece.shape for found in self._pieces.values() for piece in found}

    def tensors(self) -> Iterator[tuple[str, Source]]:
        """Give each tensor once, in the order in which the files hold them, to be read in parts."""
        for name, source in self._stored.tensors():
            # A GGUF file holds settings as tensors too, and does not count them.
            for piece in self._pieces.get(name, ()):
                yield piece.name, _Cutout(source, piece) if piece.rows else source


@dataclass(frozen=True, slots=True)
class _Cutout:
    """Some rows of a stored tensor, read when they are asked for."""

    source: Source
    piece: Piece

    def __getitem__(self, part: tuple[slice, ...]) -> Tensor:
        """Read a part."""
        rows, *others = part
        wanted = range(self.piece.shape[0])[rows]
        read = [self._read((slice(span.start, span.stop), *others)) for span in _within(self.piece, wanted)]
        return torch.cat(read)

    def _read(self, part: tuple[slice, ...]) -> Tensor:
        expert = self.piece.expert
        return self.source[part] if expert is None else self.source[slice(expert, expert + 1), *part][0]


def _within(piece: Piece, wanted: range) -> Iterator[range]:
    """Find the rows of the source that hold the rows `wanted` of the piece."""
    start = 0
    for span in piece.rows:
        first, last = max(wanted.start - start, 0), min(wanted.stop - start, len(span))
        if first < last:
            yield span[first:last]
        start += len(span)
