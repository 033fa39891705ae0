"""The ranks that share one model, as its layers see them: sums over all, and logits to the leader."""

import contextlib
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]  # torch marks no exports

from cortex_neuron.model.shard import ALONE, Shard

LEADER = 0
LIMIT = timedelta(minutes=10)
"""A backstop for ranks that load unequally fast; the neuron notices a stuck step much sooner."""


class Group(Protocol):
    """All ranks call the same methods in the same order, each with its own tensors of equal shapes."""

    @property
    def shard(self) -> Shard:
        """Which of the ranks this is."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Add up the `x` of all ranks, in place, and return the sum on each."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """Join the `x` of all ranks in their last dimension on the leader; others get back their own."""
        ...

    def close(self) -> None:
        """Part from the others."""


class Solo:
    """A rank that has the whole model to itself."""

    shard = ALONE

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of one."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Return all there is."""
        return x

    def close(self) -> None:
        """There is nobody to part from."""


class Peers:
    """One of several ranks, over NCCL on GPUs and gloo on CPUs; there can be one in a process."""

    def __init__(self, shard: Shard, store: Store, device: torch.device) -> None:
        self.shard = shard
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=shard.rank,
            world_size=shard.world,
            timeout=LIMIT,
            device_id=device if on_gpu else None,
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        """Add up the `x` of all ranks, in place, and return the sum on each."""
        dist.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Join the `x` of all ranks in their last dimension on the leader; others get back their own."""
        if self.shard.rank != LEADER:
            dist.gather(x, dst=LEADER)
            return x
        parts = [torch.empty_like(x) for _ in range(self.shard.world)]
        dist.gather(x, parts, dst=LEADER)
        return torch.cat(parts, dim=-1)

    def close(self) -> None:
        """Leave the process group; it may be broken already."""
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


SOLO = Solo()
