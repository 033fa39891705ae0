"""Where the tensors of a checkpoint belong, and which part of each a rank reads."""

from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from cortex_neuron.model.shard import Cut


class Source(Protocol):
    """A tensor that can be read in parts: a slice of a mapped file, or a tensor in memory."""

    def __getitem__(self, part: tuple[slice, ...]) -> Tensor:
        """Read a part."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's part of one tensor, usually a view of a parameter."""

    part: Tensor
    dim: int
    """The dimension that is cut; the others are whole."""
    cut: Cut

    @classmethod
    def of(cls, part: Tensor, dim: int, cut: Cut) -> Self:
        """Check that the part has the size of the cut."""
        assert part.shape[dim] == cut.size, f"room for {part.shape[dim]}, not for {cut.size}"
        return cls(part, dim, cut)

    @classmethod
    def whole(cls, tensor: Tensor) -> Self:
        """Every rank reads all of it."""
        return cls.of(tensor, 0, Cut.all_of(len(tensor)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor in the checkpoint."""
        sizes = list(self.part.shape)
        sizes[self.dim] = self.cut.whole
        return tuple(sizes)

    def fill(self, source: Source) -> int:
        """Copy each span to its place, in the place's dtype and on its device; returns the bytes read."""
        num_bytes = 0
        before = (slice(None),) * self.dim
        start = 0
        for span in self.cut.spans:
            piece = self.part.narrow(self.dim, start, len(span))
            start += len(span)
            read = source[(*before, slice(span.start, span.stop))]
            piece.copy_(read)
            num_bytes += read.nbytes
        return num_bytes
