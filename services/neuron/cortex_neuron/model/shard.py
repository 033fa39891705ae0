"""Which part of every tensor each of the ranks holds that share one model; no torch here.

A rank holds whole heads and whole columns of the MLP, so that nothing crosses ranks but sums
behind `o_proj` and `down_proj`, lookups, and logits. Key/value heads that are fewer than ranks are
held by several ranks each: query head h needs the key/value head h * kv heads // query heads.
"""

from dataclasses import dataclass
from typing import Self

from cortex_proto.errors import LoadFailedError


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of one dimension that a rank holds: `spans` of it, end to end."""

    whole: int
    """How long the dimension is in the checkpoint."""
    spans: tuple[range, ...]

    @property
    def size(self) -> int:
        """How much of it the rank holds."""
        return sum(len(span) for span in self.spans)

    @classmethod
    def all_of(cls, num: int) -> Self:
        """Hold everything."""
        return cls(num, (range(num),))

    @classmethod
    def none_of(cls, num: int) -> Self:
        """Hold nothing."""
        return cls(num, ())


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank of `world`."""

    rank: int
    world: int

    def span(self, num: int, width: int = 1) -> Cut:
        """Hold an equal share of `num` things, each `width` long; `check` has seen that it is equal."""
        assert num % self.world == 0, f"{num} cannot be shared by {self.world} ranks"
        share = num // self.world * width
        return Cut(num * width, (range(self.rank * share, (self.rank + 1) * share),))

    def kv_heads(self, num: int, width: int = 1) -> Cut:
        """Hold the key/value heads of this rank's query heads: a share, or one that others hold as well."""
        if num >= self.world:
            return self.span(num, width)
        first = self.rank * num // self.world * width
        return Cut(num * width, (range(first, first + width),))

    def padded(self, num: int) -> Cut:
        """Hold a share of rows of which the last ranks may have fewer, or none; see `share`."""
        share = self.share(num)
        first = min(self.rank * share, num)
        return Cut(num, (range(first, min(first + share, num)),))

    def share(self, num: int) -> int:
        """Count what each rank makes room for, where `num` need not divide."""
        return -(-num // self.world)


ALONE = Shard(0, 1)


def regions(*cuts: Cut) -> Cut:
    """Join the cuts of tensors that a checkpoint has fused into one, from top to bottom.

    Each region is cut by itself. A uniform cut of the fused tensor would give the first rank all
    queries, the last all values, and no error but wrong answers.
    """
    spans: list[range] = []
    offset = 0
    for cut in cuts:
        spans += [range(offset + span.start, offset + span.stop) for span in cut.spans]
        offset += cut.whole
    return Cut(offset, tuple(spans))


def check(world: int, shared: dict[str, int], *, num_kv_heads: int) -> None:
    """See that `world` ranks can share what must be shared evenly; `shared` are the numbers by name.

    Raises:
        LoadFailedError: they cannot; the text has the numbers.
    """
    for name, num in shared.items():
        if num % world:
            raise LoadFailedError(f"{num} {name} cannot be shared by {world} ranks")
    if num_kv_heads % world and world % num_kv_heads:
        raise LoadFailedError(f"{num_kv_heads} key/value heads cannot be shared by {world} ranks")
