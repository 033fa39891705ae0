"""A gateway and a scheduler as a neuron sees them; both check what they receive."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cortex_kit.bus import Bus
from cortex_kit.kv import Kv
from cortex_proto import subjects
from cortex_proto.catalogue import Model
from cortex_proto.fleet import Replica
from cortex_proto.generation import (
    Cancel,
    Delta,
    Generate,
    Lease,
    LeaseHeld,
    Sampling,
    Step,
    Text,
    TokenMessage,
)
from cortex_proto.ids import InstanceId, ModelId, NodeId, RequestId, StreamId, stream_id
from cortex_proto.placement import Assignment, Desired
from cortex_proto.stream import Checking

NODE = NodeId("test-node")
WITHIN_S = 60.0
CONTEXT = 65536
"""Of the model: so much that an endless answer is still running when a test is done."""
NEWS_S = 0.2


class Gateway:
    """One gateway: sends requests, and checks what comes back as the real one does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.id: InstanceId = bus.instance
        self.deltas: dict[StreamId, list[Delta]] = {}
        self.leases: asyncio.Queue[LeaseHeld] = asyncio.Queue()
        self.unanswered: list[str] = []
        self._checking: dict[StreamId, Checking] = {}
        self._news = asyncio.Condition()
        self._num_requests = 0

    async def start(self) -> None:
        topic = subjects.tokens(self.id, "*", "*")
        await self.bus.hear(topic, self._take, unanswered=self.unanswered.append)
        await self.bus.barrier()

    async def generate(self, model: ModelId, to: NodeId | None = NODE, **fields: Any) -> StreamId:
        """Send a request to a node, or, with None, to whoever has the model."""
        self._num_requests += 1
        request = RequestId(f"{self.id}{self._num_requests:04}")
        stream = stream_id(request, 0)
        fields = {"prompt": Text("the cat"), "sampling": Sampling(temperature=1.0, seed=7)} | fields
        message = Generate(request, stream, self.id, model, **fields)
        topic = subjects.request(model, to) if to else subjects.request_any(model)
        await self.bus.publish(topic, message, reply=subjects.tokens(self.id, "0", stream).subject)
        return stream

    async def deltas_of(self, stream: StreamId, *, until: type) -> list[Delta]:
        """Wait for a delta of the type `until`, and return all so far."""
        async with asyncio.timeout(WITHIN_S), self._news:
            await self._news.wait_for(lambda: any(isinstance(d, until) for d in self.deltas.get(stream, [])))
        return self.deltas[stream]

    async def lease(self, *streams: StreamId) -> LeaseHeld:
        """Renew the lease of `streams`, and wait for the answer."""
        reply = subjects.tokens(self.id, NODE, "_").subject
        await self.bus.publish(subjects.control(NODE, "_"), Lease(self.id, streams), reply=reply)
        return await asyncio.wait_for(self.leases.get(), WITHIN_S)

    async def cancel(self, stream: StreamId) -> None:
        await self.bus.publish(subjects.control(NODE, stream), Cancel(stream))

    async def _take(self, message: TokenMessage, subject: str) -> None:
        assert subject.startswith(f"cortex.tok.{self.id}.{NODE}.")
        match message:
            case LeaseHeld():
                self.leases.put_nowait(message)
            case Step(frames=frames):
                async with self._news:
                    for frame in frames:
                        checking = self._checking.setdefault(frame.stream, Checking())
                        self.deltas.setdefault(frame.stream, []).append(checking.take(frame))
                    self._news.notify_all()


class Watch:
    """A running neuron, seen from the scheduler."""

    def __init__(self, kv: Kv, path: Path) -> None:
        self.kv = kv
        self.path = path
        self.listen = ""
        self.life = contextlib.AsyncExitStack()
        """The neuron runs until this is left."""
        self.reports: list[Replica] = []
        self._news = asyncio.Condition()

    async def note(self, replica: Replica, _: str) -> None:
        async with self._news:
            self.reports.append(replica)
            self._news.notify_all()

    def model(self, name: str = "tiny", **fields: Any) -> Model:
        return Model(ModelId(name), str(self.path), **fields)

    async def want(self, *models: Model, epoch: int = 1) -> None:
        assignments = tuple(Assignment(model, (0,), "the test wants it") for model in models)
        await self.kv.put(subjects.desired(NODE), Desired(NODE, epoch, assignments))

    async def stop(self) -> None:
        """Stop the neuron as SIGTERM does."""
        await self.life.aclose()

    async def news(self) -> None:
        """Wait for the next report, or a little."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_S), self._news:
                await self._news.wait()

    async def until(self, state: type, name: str = "tiny") -> Replica:
        """Wait for the next report of this state, and return it."""
        seen = len(self.reports)

        def found() -> list[Replica]:
            return [r for r in self.reports[seen:] if r.model == name and isinstance(r.state, state)]

        async with asyncio.timeout(WITHIN_S), self._news:
            await self._news.wait_for(found)
        return found()[0]


Start = Callable[..., Awaitable[Watch]]
MakeGateway = Callable[[], Awaitable[Gateway]]
