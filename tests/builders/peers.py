"""The other processes as a gateway sees them: a scheduler and neurons that do what a test says."""

import asyncio
from collections.abc import Awaitable, Callable

from cortex_kit.buckets import PLACE
from cortex_kit.bus import Bus, Subscription
from cortex_kit.kv import Kv
from cortex_proto.catalogue import Catalogue, Model
from cortex_proto.errors import CortexError
from cortex_proto.fleet import Ready, Replica, ReplicaState
from cortex_proto.generation import (
    Accepted,
    Cancel,
    ControlMessage,
    Delta,
    Finished,
    FinishReason,
    Frame,
    Generate,
    LeaseHeld,
    Step,
    TextDelta,
    Timing,
    Usage,
)
from cortex_proto.ids import InstanceId, ModelId, NodeId, StreamId
from cortex_proto.placement import Ensure, EnsureReply, Pending
from cortex_proto.stream import Numbering
from cortex_proto.subjects import ANY, CATALOGUE, ENSURE, control, load, request, tokens

TINY = ModelId("org/tiny-1.0")


class FakeScheduler:
    """Publishes a catalogue, and answers every `Ensure` with `reply`."""

    def __init__(self, bus: Bus) -> None:
        self.reply: EnsureReply | CortexError = Pending("by the test")
        self.asked: asyncio.Queue[ModelId] = asyncio.Queue()
        self._bus = bus
        self._kv = Kv(bus)

    async def start(self) -> None:
        await self._kv.ensure_bucket(PLACE)
        await self.publish(Catalogue((Model(TINY),), {"little": TINY}))
        await self._bus.answer(ENSURE, self._ensure)

    async def publish(self, catalogue: Catalogue) -> None:
        await self._kv.put(CATALOGUE, catalogue)

    async def _ensure(self, ask: Ensure) -> EnsureReply:
        self.asked.put_nowait(ask.model)
        if isinstance(self.reply, CortexError):
            raise self.reply
        return self.reply


class Served:
    """One stream at a neuron: number deltas and send them, well or badly."""

    def __init__(self, neuron: "FakeNeuron", generate: Generate) -> None:
        self.generate = generate
        self.neuron = neuron
        self._numbering = Numbering(generate.stream)

    @property
    def num_framed(self) -> int:
        return self._numbering.sent

    def frame(self, delta: Delta) -> Frame:
        """Number a delta; whether it is sent is another matter."""
        return self._numbering.frame(delta)

    async def send(self, *frames: Frame) -> None:
        await self.neuron.send(self.generate.gateway, *frames)

    async def say(self, *deltas: Delta) -> None:
        for delta in deltas:
            await self.send(self.frame(delta))

    async def accept(self) -> None:
        await self.say(Accepted(self.neuron.node))

    def end(self, reason: FinishReason = "stop", *, output_tokens: int = 3) -> Finished:
        usage = Usage(prompt_tokens=5, output_tokens=output_tokens)
        return Finished(reason, usage, Timing(0, 0, 0), self._numbering.digest.text())


Answer = Callable[[Served], Awaitable[None]]


async def say_hello(served: Served) -> None:
    """Answer as a healthy neuron does."""
    await served.accept()
    await served.say(TextDelta("Hel"), TextDelta("lo"))
    await served.say(served.end())


class FakeNeuron:
    """One node with one model; runs `answer` for each request."""

    def __init__(self, bus: Bus, node: str = "a", answer: Answer = say_hello, model: ModelId = TINY) -> None:
        self.node = NodeId(node)
        self.answer = answer
        self.holds_leases = True
        self.cancels: asyncio.Queue[StreamId] = asyncio.Queue()
        self.requests: asyncio.Queue[Generate] = asyncio.Queue()
        self._model = model
        self._bus = bus
        self._serving: dict[StreamId, Served] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: list[Subscription] = []

    async def start(self) -> None:
        """Listen, and say that the model is ready."""
        self._heard = [
            await self._bus.hear(request(self._model, self.node), self._on_request),
            await self._bus.hear(control(self.node, ANY), self._on_control),
        ]
        await self.report(Ready(0, 0, max_waiting=8, idle_s=0, context=2048))

    async def stop(self) -> None:
        """Be gone from the bus."""
        for task in self._tasks:
            task.cancel()
        for subscription in self._heard:
            await subscription.stop()
        await self._bus.barrier()

    def forget(self, served: Served) -> None:
        """Know nothing of a stream any more, as after a restart."""
        del self._serving[served.generate.stream]

    async def report(self, state: ReplicaState) -> None:
        await self._bus.publish(load(self._model, self.node), Replica(self._model, self.node, state))
        await self._bus.barrier()

    async def send(self, gateway: InstanceId, *frames: Frame) -> None:
        await self._bus.publish(tokens(gateway, self.node, "_"), Step(frames))

    async def _on_request(self, generate: Generate, _subject: str) -> None:
        served = self._serving[generate.stream] = Served(self, generate)
        self.requests.put_nowait(generate)
        task = asyncio.ensure_future(self.answer(served))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_control(self, message: ControlMessage, _subject: str) -> None:
        if isinstance(message, Cancel):
            self.cancels.put_nowait(message.stream)
        elif self.holds_leases:
            sent = {s: self._serving[s].num_framed for s in message.streams if s in self._serving}
            await self._bus.publish(tokens(message.gateway, self.node, "_"), LeaseHeld(sent))
