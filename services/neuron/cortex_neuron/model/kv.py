"""The memory that holds keys and values, cut into pages that any sequence may own."""

import torch

from cortex_neuron.model.shard import ALONE, Shard
from cortex_neuron.model.spec import PAGE, ModelSpec


class KvPool:
    """Keys and values of all layers: `k` and `v` are [layers, kv heads, pages, PAGE, head width].

    The heads are those of one rank.

    Heads stand before pages, so that the tokens of a run of adjacent pages lie side by side within
    a head: attention reads them without a copy, and faster than with the heads in between.
    The memory is not cleared: only slots that were written are ever read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        shard: Shard = ALONE,
        *,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        num_heads = shard.kv_heads(spec.num_kv_heads).size
        shape = (spec.num_layers, num_heads, num_pages, PAGE, spec.head_dim)
        self.num_pages = num_pages
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
