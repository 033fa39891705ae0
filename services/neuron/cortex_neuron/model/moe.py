"""Mixture of experts: each token goes through a few of many MLPs, which a router chooses.

Dimensions, as suffixes of tensor names:
    T  tokens of all rows, end to end    D  model width
    E  experts                           X  experts that a token goes through
Source: Qwen3, arXiv:2505.09388; the shared expert, arXiv:2401.06066; transformers, qwen3_moe and qwen3_next.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from cortex_neuron.model.dense import MLP, Layer
from cortex_neuron.model.group import Group
from cortex_neuron.model.layers import Empty, Linear
from cortex_neuron.model.shard import Shard
from cortex_neuron.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Unsummed:
    """The ranks as one expert sees them: each keeps its part, and the sum over the experts is summed once."""

    shard: Shard

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return this rank's part."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Return this rank's part."""
        return x

    def close(self) -> None:
        """There is nothing open."""


class SparseMLP(nn.Module):
    """Routed experts alone, as Qwen3-MoE has them."""

    def __init__(self, spec: ModelSpec, empty: Empty, group: Group) -> None:
        super().__init__()
        it = spec.experts
        self.group = group
        self.num_chosen, self.renormalises = it.num_chosen, it.renormalises
        # In float32: a tie that rounds the other way sends a token somewhere else.
        router_empty = partial(empty, dtype=torch.float32)
        self.router = Linear(spec.dim, {"gate": it.num_experts}, bias=False, empty=router_empty)
        expert = replace(spec, intermediate_dim=it.intermediate_dim)
        self.experts = nn.ModuleList(MLP(expert, empty, Unsummed(group.shard)) for _ in range(it.num_experts))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Add up what a token's experts make of it, each by its weight; returns y_TD."""
        return self.group.all_reduce(self.routed(x_TD))

    def routed(self, x_TD: Tensor) -> Tensor:
        """Give this rank's part of the sum."""
        weights_TX, experts_TX = self.route(x_TD)
        y_TD = torch.zeros_like(x_TD)
        for expert in sorted(set(experts_TX.flatten().tolist())):
            tokens, places = (experts_TX == expert).nonzero(as_tuple=True)
            weighted = self.experts[expert](x_TD[tokens]) * weights_TX[tokens, places, None]
            y_TD.index_add_(0, tokens, weighted)
        return y_TD

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the experts of each token; returns weights_TX and experts_TX."""
        shares_TE = self.router(x_TD.float()).softmax(-1)
        weights_TX, experts_TX = shares_TE.topk(self.num_chosen, dim=-1)
        if self.renormalises:
            weights_TX = weights_TX / weights_TX.sum(-1, keepdim=True)
        return weights_TX.to(x_TD.dtype), experts_TX


class SharedSparseMLP(SparseMLP):
    """Routed experts, and one more that every token goes through, scaled by a gate of its own."""

    def __init__(self, spec: ModelSpec, empty: Empty, group: Group) -> None:
        super().__init__(spec, empty, group)
        shared = replace(spec, intermediate_dim=spec.experts.shared_dim)
        self.shared_expert = MLP(shared, empty, Unsummed(group.shard))
        self.shared_gate = Linear(spec.dim, {"shared_expert_gate": 1}, bias=False, empty=empty)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Add the shared expert to the routed ones; returns y_TD."""
        y_TD = self.shared_gate(x_TD).sigmoid() * self.shared_expert(x_TD)
        return self.group.all_reduce(self.routed(x_TD) + y_TD)


def feed_forward(spec: ModelSpec, index: int) -> Callable[[ModelSpec, Empty, Group], nn.Module]:
    """Say what stands behind the mixer of layer `index`."""
    if index not in spec.experts.layers:
        return MLP
    return SharedSparseMLP if spec.experts.shared_dim else SparseMLP


def layer(spec: ModelSpec, index: int, empty: Empty, group: Group) -> nn.Module:
    """Make a layer of Qwen3-MoE: that of Qwen3 but for its MLP."""
    return Layer(spec, index, empty, group, feed_forward(spec, index))
