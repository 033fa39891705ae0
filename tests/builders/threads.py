"""Several ranks of one model in one process: threads that add up in place of gloo."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.load import load
from cortex_neuron.model.shard import Shard

T = TypeVar("T")
LIMIT_S = 30.0


class Table:
    """Where all ranks lay down their tensors."""

    def __init__(self, world: int) -> None:
        self.parts: list[Tensor | None] = [None] * world
        self.barrier = Barrier(world, timeout=LIMIT_S)

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        """Lay down `x`; returns copies of what all laid down."""
        self.parts[rank] = x
        self.barrier.wait()
        parts = [part.clone() for part in self.parts if part is not None]
        self.barrier.wait()
        return parts


@dataclass(frozen=True)
class Threads:
    """One of the ranks."""

    shard: Shard
    table: Table
    sums: list[int] = field(default_factory=list)
    """How many numbers each sum so far was of."""

    def all_reduce(self, x: Tensor) -> Tensor:
        self.sums.append(x.numel())
        return x.copy_(torch.stack(self.table.exchange(self.shard.rank, x)).sum(0))

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat(self.table.exchange(self.shard.rank, x), dim=-1)

    def close(self) -> None: ...


def on_ranks(path: Path, world: int, work: Callable[[CausalModel, Threads], T]) -> list[T]:
    """Load each rank's part of the model at `path` and let it `work`; returns what came out, rank by rank."""
    table = Table(world)

    def run(rank: int) -> T:
        group = Threads(Shard(rank, world), table)
        model = load(
            path, device="cpu", dtype=torch.float32, on_progress=lambda _stage, _done: None, group=group
        )
        group.sums.clear()
        return work(model, group)

    with ThreadPoolExecutor(world) as ranks:
        return list(ranks.map(run, range(world)))
