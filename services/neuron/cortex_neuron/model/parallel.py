"""The layers that ranks share: matrices cut by rows or columns, a table and a head cut by vocabulary.

Between a matrix cut by rows and one cut by columns each rank works on its own heads, or its own
columns of the MLP, and needs to know nothing of the others. All ranks hold the whole stream.

Dimensions, as suffixes of tensor names:
    T  tokens of all rows, end to end    D  model width        V  vocabulary
    I  inputs of a matrix                O  its outputs        R  rows
A rank holds a share of V, and of O or I; D, T and R are whole.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from cortex_neuron.model.group import Group
from cortex_neuron.model.layers import Embedding, Empty, Linear, Places
from cortex_neuron.model.matmul import Plain
from cortex_neuron.model.places import Place
from cortex_neuron.model.shard import Cut


class ColumnLinear(Linear):
    """Matrices of which each rank has some outputs."""

    def __init__(self, dim_in: int, outputs: Mapping[str, Cut], *, bias: bool, empty: Empty) -> None:
        super().__init__(dim_in, {name: cut.size for name, cut in outputs.items()}, bias=bias, empty=empty)
        self.cuts = outputs

    def places(self) -> Places:
        """Name the rows of each single matrix that are here, and its piece of the bias."""
        places = super().places()
        for name, cut in self.cuts.items():
            for kind in ("weight", "bias"):
                if place := places.get(f"{name}.{kind}"):
                    places[f"{name}.{kind}"] = Place.of(place.part, 0, cut)
        return places


class RowLinear(Linear):
    """A matrix of which each rank has some inputs; the partial products are added up.

    The leader alone adds the bias, before the sum.
    """

    def __init__(
        self, dim_in: Cut, outputs: dict[str, int], *, bias: bool, empty: Empty, group: Group
    ) -> None:
        has_bias = bias and group.shard.rank == 0
        super().__init__(dim_in.size, outputs, bias=has_bias, empty=empty)
        self.cut = dim_in
        self.group = group
        self.others_bias = empty(0) if bias and not has_bias else None

    def places(self) -> Places:
        """Name the columns that are here; a bias that is the leader's is known, and not read."""
        places = super().places()
        for name, width in self.outputs.items():
            places[f"{name}.weight"] = Place.of(places[f"{name}.weight"].part, 1, self.cut)
            if self.others_bias is not None:
                places[f"{name}.bias"] = Place.of(self.others_bias, 0, Cut.none_of(width))
        return places

    def forward(self, x_TI: Tensor) -> Tensor:
        """Multiply and add up over the ranks; returns the whole y_TO."""
        return self.group.all_reduce(self.form(x_TI))


class SharedEmbedding(Embedding):
    """The table of token vectors of which each rank has some rows."""

    def __init__(self, vocab_size: int, dim: int, *, empty: Empty, group: Group) -> None:
        super().__init__(group.shard.share(vocab_size), dim, empty=empty)
        self.group = group
        self.cut = group.shard.padded(vocab_size)
        self.first = self.cut.spans[0].start
        self.weight[self.cut.size :].zero_()

    def place(self) -> Place:
        """Say which rows are here; those beyond the vocabulary stay zero."""
        return Place.of(self.weight[: self.cut.size], 0, self.cut)

    def forward(self, tokens_T: Tensor) -> Tensor:
        """Look up what is here, zeros for the rest, and add up over the ranks; returns x_TD."""
        rows_T = tokens_T - self.first
        is_absent_T = (rows_T < 0) | (rows_T >= self.cut.size)
        x_TD = F.embedding(rows_T.masked_fill(is_absent_T, 0), self.weight)
        return self.group.all_reduce(x_TD.masked_fill(is_absent_T[:, None], 0.0))


class Head(Linear):
    """The matrix from the stream to the logits, of which each rank has some rows."""

    def __init__(self, dim: int, vocab_size: int, *, empty: Empty, group: Group) -> None:
        share = group.shard.share(vocab_size)
        super().__init__(dim, {"lm_head": share}, bias=False, empty=empty)
        self.group = group
        self.vocab_size = vocab_size
        self.cut = group.shard.padded(vocab_size)
        assert self.weight is not None
        self.weight[self.cut.size :].zero_()

    def places(self) -> Places:
        """Say which rows are here; those beyond the vocabulary stay zero."""
        assert self.weight is not None
        return {"lm_head.weight": Place.of(self.weight[: self.cut.size], 0, self.cut)}

    def forward(self, x_RD: Tensor) -> Tensor:
        """Multiply; returns logits_RV on the leader, and on the others what is theirs of them."""
        return self.group.gather(self.form(x_RD))[:, : self.vocab_size]


class TiedHead(Head):
    """The embedding table once more, as the matrix from the stream to the logits.

    Packed, it is a copy: the lookup still needs the table as it is.
    """

    def __init__(self, table: Embedding, vocab_size: int, group: Group) -> None:
        nn.Module.__init__(self)
        self.outputs = {}
        self.weight = table.weight
        self.bias = None
        self.form = Plain(self.weight, None)
        self.group = group
        self.vocab_size = vocab_size

    def places(self) -> Places:
        """Name nothing: the table is loaded as the embedding."""
        return {}


def embedding(vocab_size: int, dim: int, *, empty: Empty, group: Group) -> Embedding:
    """Make the table; a rank that has all of it need not ask which tokens it has."""
    if group.shard.world == 1:
        return Embedding(vocab_size, dim, empty=empty)
    return SharedEmbedding(vocab_size, dim, empty=empty, group=group)
