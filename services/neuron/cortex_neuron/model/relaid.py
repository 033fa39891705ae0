"""A checkpoint in the layout that the engine computes with, cut out of the one that is stored."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cortex_neuron.model.checkpoint import Checkpoint
from cortex_neuron.model.layout import Piece, pieces
from cortex_neuron.model.spec import ModelSpec


class Relaid:
    """Gives the tensors of another checkpoint by the names and shapes that models of `spec` have."""

    def __init__(self, stored: Checkpoint, spec: ModelSpec) -> None:
        self._stored = stored
        self._pieces = {name: pieces(name, shape, spec.delta) for name, shape in stored.shapes.items()}
        self.shapes = {piece.name: piece.shape for found in self._pieces.values() for piece in found}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give each tensor once, in the order in which the files hold them."""
        for name, tensor in self._stored.tensors():
            # A GGUF file holds settings as tensors too, and does not count them.
            for piece in self._pieces.get(name, ()):
                yield piece.name, _cut(tensor, piece)


def _cut(tensor: Tensor, piece: Piece) -> Tensor:
    if not piece.rows:
        return tensor
    flat = tensor.flatten(0, -2)
    return torch.cat([flat[span.start : span.stop] for span in piece.rows])
