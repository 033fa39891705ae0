"""What a model remembers of its sequences: pages of keys and values, and slots of states."""

import torch

from cortex_neuron.model.shard import ALONE, Shard
from cortex_neuron.model.spec import PAGE, ModelSpec
from cortex_neuron.model.state import StatePool


class KvPool:
    """Keys and values of all layers that attend, and the states of those that do not.

    `k` and `v` are [layers, kv heads, pages, PAGE, head width]; the heads are those of one rank.
    Heads stand before pages, so that the tokens of a run of adjacent pages lie side by side within
    a head: attention reads them without a copy, and faster than with the heads in between.
    The memory is not cleared: only slots that were written are ever read.
    """

    def __init__(  # noqa: PLR0913  # what there is room for, and where: six independent things
        self,
        spec: ModelSpec,
        shard: Shard = ALONE,
        *,
        num_pages: int,
        num_slots: int = 1,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        num_heads = shard.kv_heads(spec.num_kv_heads).size
        shape = (spec.num_attention_layers, num_heads, num_pages, PAGE, spec.head_dim)
        self.num_pages = num_pages
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.states = StatePool(spec, shard, num_slots=num_slots, dtype=dtype, device=device)
