"""Answers requests with the models that are loaded here, and hears leases and cancels."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import structlog

from cortex_neuron.engine.messages import Ended, Event, Refused, Sampled, StepEvents
from cortex_neuron.replica import Replica
from cortex_neuron.report import Load
from cortex_neuron.streams import Limits, Stream, Streams
from cortex_proto.errors import BusyError, CortexError, Failed, UnavailableError, to_wire
from cortex_proto.generation import Cancel, ControlMessage, Frame, Generate, Lease, Step, TokenMessage
from cortex_proto.ids import InstanceId, ModelId, NodeId

log = structlog.get_logger()


class Sink(Protocol):
    """Where messages to gateways go: `Outbox.put`."""

    def __call__(self, gateway: InstanceId, message: TokenMessage) -> None:
        """Send `message` behind all earlier ones."""


class Serving:
    """All requests on this node. Lives in one event loop; every method returns at once."""

    def __init__(
        self,
        node: NodeId,
        send: Sink,
        *,
        clock: Callable[[], float],
        on_idle: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._node = node
        self._send = send
        self._clock = clock
        self._on_idle = on_idle
        self._streams = Streams(limits)
        self._replicas: dict[ModelId, Replica] = {}
        self._closed: set[ModelId] = set()
        self._is_leaving = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def num_live(self) -> Mapping[ModelId, int]:
        """Unfinished streams per model."""
        return self._streams.num_live

    @property
    def replicas(self) -> Mapping[ModelId, Replica]:
        """The models that are loaded here."""
        return self._replicas

    def load(self, model: ModelId) -> Load | None:
        """Tell how busy `model` is; streams still being prepared count as waiting."""
        replica = self._replicas.get(model)
        if replica is None:
            return None
        num_live = self.num_live.get(model, 0)
        running = min(replica.running, num_live)
        waiting = num_live - running
        return Load(running, waiting, replica.max_waiting, replica.idle_since_s, replica.context)

    def add(self, replica: Replica) -> None:
        """Serve this model from now on."""
        self._replicas[replica.model.id] = replica
        self._closed.discard(replica.model.id)

    def close(self, model: ModelId) -> None:
        """Take no new requests for `model`; those under way go on."""
        self._closed.add(model)

    def reopen(self, model: ModelId) -> None:
        """Take requests for `model` again."""
        self._closed.discard(model)

    def remove(self, model: ModelId, error: CortexError) -> None:
        """Forget this model; what is still under way fails with `error`."""
        self._replicas.pop(model, None)
        self._closed.discard(model)
        for stream in self._streams.of(model):
            self._fail(stream, to_wire(error))

    def refuse_new(self) -> None:
        """Take no new requests at all: this node is about to leave."""
        self._is_leaving = True

    def request(self, generate: Generate) -> None:
        """Take in a request: accept it at once, or say at once why not."""
        stream = self._streams.open(generate, self._clock())
        if stream is None:
            return
        replica = self._replicas.get(generate.model)
        if replica is None or self._is_leaving or generate.model in self._closed:
            because = f"model {generate.model!r} is not loaded on node {self._node}, or is leaving"
            self._fail(stream, to_wire(UnavailableError(because)))
        elif (num_live := self.num_live[generate.model]) > replica.capacity:
            because = f"{num_live - 1} requests run or wait for {generate.model!r} on node {self._node}"
            self._fail(stream, to_wire(BusyError(because)))
        else:
            self._send(stream.gateway, Step((stream.accept(self._node),)))
            self._spawn(self._begin(replica, stream, generate))

    def control(self, message: ControlMessage) -> None:
        """Take in a lease or a cancel."""
        match message:
            case Lease():
                self._send(message.gateway, self._streams.lease(message, self._clock()))
            case Cancel():
                if stream := self._streams.live(message.stream):
                    self._cancel(stream)

    def take(self, model: ModelId, step: StepEvents) -> None:
        """Take in what an engine step gave; one message goes to each gateway concerned."""
        replica = self._replicas.get(model)
        if replica is None:
            return
        replica.running = step.running
        frames: dict[InstanceId, list[Frame]] = defaultdict(list)
        for event in step.events:
            if stream := self._streams.live(event.id):
                frames[stream.gateway].extend(self._frames(replica, stream, event))
        for gateway, some in frames.items():
            if some:
                self._send(gateway, Step(tuple(some)))

    def reap(self) -> None:
        """End the streams that nobody wants any more, and those whose time is up; forget old ones."""
        now_s = self._clock()
        for stream in self._streams.unwanted(now_s):
            self._abandon(stream, "its gateway asked for it no more")
        for stream in self._streams.overdue(now_s):
            self._abandon(stream, "the time of the request was up")
        self._streams.forget(now_s)

    async def stop(self) -> None:
        """End the preparation of requests; call it when all models were removed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begin(self, replica: Replica, stream: Stream, generate: Generate) -> None:
        """Render and tokenise the prompt in a thread, then hand it to the engine."""
        try:
            request = await asyncio.to_thread(replica.request, generate)
            if stream.ended_s is not None:
                return
            answer = replica.codec.answer(generate, request.tokens)
            asks = generate.sampling.logprobs is not None
            ledger = replica.codec.ledger(generate, request.tokens) if asks else None
            stream.begin(answer, self._clock(), ledger)
            replica.cluster.submit(request)
        except CortexError as error:
            self._fail_if_live(stream, error)
        except Exception as error:
            log.exception("request_failed", request=generate.request, model=generate.model)
            self._fail_if_live(stream, error)

    def _frames(self, replica: Replica, stream: Stream, event: Event) -> tuple[Frame, ...]:
        match event:
            case Sampled():
                frames = stream.sampled(event.tokens, event.logprobs)
                if stream.is_stopped:
                    replica.cluster.cancel(stream.id)
                return frames
            case Ended():
                frames = stream.finished(event)
                self._end(stream)
                return frames
            case Refused():
                frame = stream.failed(event.error)
                self._end(stream)
                return (frame,)

    def _cancel(self, stream: Stream) -> None:
        """Stop the work on a stream of which nothing more is wanted."""
        if replica := self._replicas.get(stream.model):
            replica.cluster.cancel(stream.id)
        self._end(stream)

    def _abandon(self, stream: Stream, because: str) -> None:
        log.info("stream_abandoned", stream=stream.id, model=stream.model, because=because)
        if replica := self._replicas.get(stream.model):
            replica.cluster.cancel(stream.id)
        self._fail(stream, Failed(UnavailableError.code, because, retryable=False))

    def _fail_if_live(self, stream: Stream, error: BaseException) -> None:
        if stream.ended_s is None:
            self._fail(stream, to_wire(error))

    def _fail(self, stream: Stream, failed: Failed) -> None:
        self._send(stream.gateway, Step((stream.failed(failed),)))
        self._end(stream)

    def _end(self, stream: Stream) -> None:
        self._streams.end(stream, self._clock())
        if not self.num_live.get(stream.model):
            if replica := self._replicas.get(stream.model):
                replica.idle_since_s = self._clock()
            self._on_idle()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
