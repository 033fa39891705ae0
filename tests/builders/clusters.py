"""Clusters on tiny random models, and a desk that hands them requests."""

import asyncio
import os
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from builders.engine import request
from cortex_neuron.engine.choosing import Logprobs
from cortex_neuron.engine.cluster import Cluster
from cortex_neuron.engine.messages import Ended, EngineRequest, LoadOptions, Refused, Sampled, StepEvents

T = TypeVar("T")
LIMIT_S = 60.0
PROMPTS = [[10 + n, *range(3, 3 + 30 * n)] for n in range(8)]
COUNT = 40


async def bounded(awaitable: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    return await asyncio.wait_for(awaitable, LIMIT_S)


class Desk:
    """Hands requests to a cluster and keeps what comes back."""

    cluster: Cluster

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.logprobs: dict[str, list[Logprobs]] = defaultdict(list)
        self.last: StepEvents | None = None
        self.preemptions = 0
        self.stages: list[str] = []
        self._changed = asyncio.Event()
        self._ends: dict[str, asyncio.Future[Ended | Refused]] = {}

    async def open(self, options: LoadOptions, **limits: float) -> "Desk":
        self.cluster = await Cluster.start(
            options,
            on_events=self.hear,
            on_progress=lambda stage, _: self.stages.append(stage),
            timeout_s=LIMIT_S,
            **limits,
        )
        return self

    def submit(self, submitted: EngineRequest) -> asyncio.Future[Ended | Refused]:
        self._ends[submitted.id] = asyncio.get_running_loop().create_future()
        self.cluster.submit(submitted)
        return self._ends[submitted.id]

    def hear(self, step: StepEvents) -> None:
        if (
            self.last
            and step.running < self.last.running
            and not any(isinstance(e, Ended) for e in step.events)
        ):
            self.preemptions += 1
        self.last = step
        for event in step.events:
            match event:
                case Sampled():
                    self.tokens[event.id] += event.tokens
                    self.logprobs[event.id] += event.logprobs
                case Ended() | Refused():
                    self._ends[event.id].set_result(event)
        self._changed.set()

    async def until(self, name: str, count: int) -> None:
        """Wait until `name` has `count` tokens."""
        while len(self.tokens[name]) < count:
            self._changed.clear()
            await bounded(self._changed.wait())

    async def answer(self, submitted: EngineRequest) -> list[int]:
        """Ask, and wait for the whole answer."""
        await bounded(self.submit(submitted))
        return self.tokens[submitted.id]


def ask(name: str, prompt: list[int], count: int = COUNT, **fields: Any) -> EngineRequest:
    return request(name, prompt, max_tokens=count, ignore_eos=True, **fields)


def tiny(path: Path, world: int = 1) -> LoadOptions:
    """Load `path` in float32, on so many ranks that share the CPU."""
    return LoadOptions(
        path=path,
        devices=("cpu",) * world,
        dtype="float32",
        kv_bytes=64 * 2**20,
        max_batch=8,
        max_waiting=8,
        prefill_tokens=64,
        threads=1,
    )


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
