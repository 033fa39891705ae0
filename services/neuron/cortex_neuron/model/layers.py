"""The layers that every architecture is built from.

A layer makes its tensors by `empty`, which knows their dtype and device, and names in `places`
where each tensor of a checkpoint belongs: a view of a parameter, so that several small matrices
are loaded straight into the one big matrix they are multiplied as. Each rank has all of these
layers; those that ranks share are in `parallel`.

Dimensions, as suffixes of tensor names:
    T  tokens of all rows, end to end    D  model width           N  heads
    I  inputs of a matrix                O  outputs of a matrix   H  width of one head
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_neuron.model.matmul import Form, Packed, Plain
from cortex_neuron.model.places import Place
from cortex_neuron.model.rope import Rope

Empty = Callable[..., Tensor]
Places = dict[str, Place]


@runtime_checkable
class Placed(Protocol):
    """A module with tensors of its own that a checkpoint fills."""

    def places(self) -> Places:
        """Name where each belongs, below the module's own name."""
        ...


def parameter(tensor: Tensor) -> nn.Parameter:
    """Register a weight; nothing is ever trained here."""
    return nn.Parameter(tensor, requires_grad=False)


class Linear(nn.Module):
    """One or several matrices on the same input, multiplied as one.

    `names` and `widths` are those of the single matrices, from top to bottom.
    """

    def __init__(self, dim_in: int, outputs: dict[str, int], *, bias: bool, empty: Empty) -> None:
        super().__init__()
        self.outputs = outputs
        dim_out = sum(outputs.values())
        self.weight: nn.Parameter | None = parameter(empty(dim_out, dim_in))
        self.bias = parameter(empty(dim_out)) if bias else None
        self.form: Form = Plain(self.weight, self.bias)

    def places(self) -> Places:
        """Name the rows of each single matrix, and its piece of the bias."""
        assert self.weight is not None
        places = self._parts("weight", self.weight)
        return places if self.bias is None else places | self._parts("bias", self.bias)

    def _parts(self, kind: str, merged: Tensor) -> Places:
        parts = torch.split(merged, list(self.outputs.values()))
        return {f"{name}.{kind}": Place.whole(part) for name, part in zip(self.outputs, parts, strict=True)}

    def pack(self) -> None:
        """Lay the matrix out for the CPU and let go of the original."""
        assert self.weight is not None
        self.form = Packed(self.weight, self.bias)
        self.weight = None

    def forward(self, x_TI: Tensor) -> Tensor:
        """Multiply; returns y_TO with the outputs of the single matrices side by side."""
        return self.form(x_TI)


class Embedding(nn.Module):
    """The table of token vectors."""

    def __init__(self, vocab_size: int, dim: int, *, empty: Empty) -> None:
        super().__init__()
        self.weight = parameter(empty(vocab_size, dim))

    def place(self) -> Place:
        """Say where the table belongs."""
        return Place.whole(self.weight)

    def forward(self, tokens_T: Tensor) -> Tensor:
        """Look up; returns x_TD."""
        return F.embedding(tokens_T, self.weight)


class RMSNorm(nn.Module):
    """Scale each vector to length sqrt(width), then by a learned weight.

    Source: RMSNorm, arXiv:1910.07467; Llama rounds to the dtype before it applies the weight.
    """

    def __init__(self, dim: int, eps: float, *, empty: Empty) -> None:
        super().__init__()
        self.eps = eps
        self.shape = (dim,)
        self.weight = parameter(empty(dim))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x_TD, self.shape, self.weight, self.eps)


class CenteredRMSNorm(nn.Module):
    """RMSNorm whose weight is stored less 1; it rounds to the dtype only after the weight."""

    def __init__(self, dim: int, eps: float, *, empty: Empty) -> None:
        super().__init__()
        self.eps = eps
        self.shape = (dim,)
        self.weight = parameter(empty(dim))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise the last dimension."""
        y_TD = F.rms_norm(x_TD.float(), self.shape, 1.0 + self.weight.float(), self.eps)
        return y_TD.to(x_TD.dtype)


class GatedRMSNorm(nn.Module):
    """RMSNorm, then a gate of its own for every number; in float32, the weight included."""

    def __init__(self, dim: int, eps: float, *, empty: Empty) -> None:
        super().__init__()
        self.eps = eps
        self.shape = (dim,)
        self.weight = parameter(empty(dim, dtype=torch.float32))

    def forward(self, x_TNH: Tensor, gate_TNH: Tensor) -> Tensor:
        """Normalise the last dimension; returns y_TNH in float32."""
        return F.rms_norm(x_TNH, self.shape, self.weight, self.eps) * F.silu(gate_TNH.float())


@dataclass(frozen=True, slots=True)
class Rotation:
    """The turns of one step's tokens, the same in all layers."""

    cos_T1H: Tensor
    sin_T1H: Tensor
    """The first half negated, which saves a negation a layer."""

    def __call__(self, x_TNH: Tensor) -> Tensor:
        """Turn the pairs (i, i + H/2) of each head by the token's angles."""
        swapped_TNH = x_TNH.roll(x_TNH.shape[-1] // 2, -1)
        return torch.addcmul(x_TNH * self.cos_T1H, swapped_TNH, self.sin_T1H)


class Rotary(nn.Module):
    """Turns positions into rotations.

    Source: RoPE, arXiv:2104.09864, with the pairing of GPT-NeoX.
    """

    inverse_frequency_H: Tensor
    sign_H: Tensor

    def __init__(self, rope: Rope, dim: int, device: torch.device) -> None:
        super().__init__()
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        frequency = 1.0 / (rope.theta**exponents * torch.tensor(rope.divisors or 1.0))
        self.register_buffer("inverse_frequency_H", frequency.repeat(2).to(device))
        sign = torch.ones(dim)
        sign[: dim // 2] = -1.0
        self.register_buffer("sign_H", sign.to(device))

    def forward(self, positions_T: Tensor, dtype: torch.dtype) -> Rotation:
        """Work out the angles in float32, once for all layers."""
        angles_T1H = positions_T[:, None, None].float() * self.inverse_frequency_H
        sin_T1H = angles_T1H.sin() * self.sign_H
        return Rotation(angles_T1H.cos().to(dtype), sin_T1H.to(dtype))
