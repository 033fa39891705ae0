"""Token streams coming in: sorted, checked, and ended with an error if a piece is missing.

One subscription carries all of them. A node that owes us tokens is sent a lease twice a second; its
answer shows whether frames got lost at the end of a stream, its silence that it has gone.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from cortex_kit.bus import Bus
from cortex_proto.errors import BusError, CortexError, Failed, NodeLostError, StreamBrokenError
from cortex_proto.generation import (
    LEASE_PERIOD_S,
    NODE_SILENCE_LIMIT_S,
    Cancel,
    Delta,
    Finished,
    Frame,
    Generate,
    Lease,
    LeaseHeld,
    Step,
    TokenMessage,
)
from cortex_proto.ids import NodeId, StreamId
from cortex_proto.stream import Checking
from cortex_proto.subjects import ANY, control, request, tokens

log = structlog.get_logger()

_MANY = "_"
_DISMISSED_KEPT = 4096
_UNKNOWN_LIMIT = 2
"""A lease may cross the start of a stream on its way, so one answer without it proves nothing."""


class Stream:
    """One attempt to serve a request, as it comes in from one node."""

    def __init__(self, id: StreamId, node: NodeId) -> None:  # noqa: A002
        self.id = id
        self.node = node
        self.checking = Checking()
        self.ended = False
        """Nothing more comes after what is queued."""
        self._times_unknown = 0
        self._arrived: asyncio.Queue[Delta | CortexError] = asyncio.Queue()

    @property
    def accepted(self) -> bool:
        """Whether the node has answered."""
        return self.checking.received > 0

    async def next(self, timeout_s: float) -> Delta | None:
        """Return the next delta; None if none comes in time.

        Raises:
            CortexError: the stream is broken, or its node lost.
        """
        arrived: Delta | CortexError | None = None
        if self._arrived.empty():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    arrived = await self._arrived.get()
        else:
            arrived = self._arrived.get_nowait()
        if isinstance(arrived, CortexError):
            raise arrived
        return arrived

    def take(self, frame: Frame) -> None:
        """Queue the delta of the next frame.

        Raises:
            StreamBrokenError: it is not the next one, or the answer is not what was sent.
        """
        delta = self.checking.take(frame)
        self.ended = isinstance(delta, Finished | Failed)
        self._arrived.put_nowait(delta)

    def check(self, sent: int | None) -> None:
        """Compare with what the node says it has sent, None if it does not know the stream.

        Raises:
            StreamBrokenError: frames are missing.
        """
        self._times_unknown = self._times_unknown + 1 if sent is None else 0
        if sent is not None or self._times_unknown >= _UNKNOWN_LIMIT:
            self.checking.check(sent)

    def fail(self, error: CortexError) -> None:
        """End with an error."""
        self.ended = True
        self._arrived.put_nowait(error)


class Streams:
    """All streams that this gateway waits for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._open: dict[StreamId, Stream] = {}
        self._leasing: dict[NodeId, asyncio.Task[None]] = {}
        self._heard: set[NodeId] = set()
        """Nodes heard since their last lease."""
        self._dismissed: deque[StreamId] = deque(maxlen=_DISMISSED_KEPT)
        """Streams that their nodes were told to stop."""

    @asynccontextmanager
    async def opened(self, node: NodeId, generate: Generate) -> AsyncIterator[Stream]:
        """Send a request to a node, and have its stream while open; leaving it early cancels it.

        Raises:
            PayloadTooLargeError: the request is too large for the bus.
            BusError: there is no connection.
        """
        stream = self._open[generate.stream] = Stream(generate.stream, node)
        try:
            reply = tokens(self._bus.instance, "0", stream.id).subject
            await self._bus.publish(request(generate.model, node), generate, reply=reply)
            if node not in self._leasing:
                self._leasing[node] = asyncio.create_task(self._lease(node))
            yield stream
        finally:
            self._open.pop(stream.id, None)
            if not stream.ended:
                await self._dismiss(node, stream.id)

    async def hear(self, message: TokenMessage, subject: str) -> None:
        """Take in frames, or the answer to a lease."""
        node = NodeId(subject.split(".")[3])
        self._heard.add(node)
        match message:
            case Step(frames=frames):
                for frame in frames:
                    await self._take(node, frame)
            case LeaseHeld(sent=sent):
                for stream in self._on(node):
                    if stream.accepted:
                        await self._check(stream, sent.get(stream.id))

    def unanswered(self, subject: str) -> None:
        """Take in that nobody heard what was sent with `subject` for its reply."""
        _, _, _, node, stream_id = subject.split(".")
        if stream_id == _MANY:
            self._lose(NodeId(node), "it has left the bus")
        elif stream := self._open.pop(StreamId(stream_id), None):
            stream.fail(BusError(f"node {stream.node} does not serve this model any more"))

    def close(self) -> None:
        """Stop sending leases."""
        for task in self._leasing.values():
            task.cancel()

    def _on(self, node: NodeId) -> tuple[Stream, ...]:
        return tuple(s for s in self._open.values() if s.node == node)

    async def _take(self, node: NodeId, frame: Frame) -> None:
        stream = self._open.get(frame.stream)
        if stream is None or stream.node != node:
            if not isinstance(frame.delta, Finished | Failed):
                await self._dismiss(node, frame.stream)
            return
        try:
            stream.take(frame)
        except StreamBrokenError as error:
            await self._break(stream, error)
        if stream.ended:
            self._open.pop(stream.id, None)

    async def _check(self, stream: Stream, sent: int | None) -> None:
        try:
            stream.check(sent)
        except StreamBrokenError as error:
            await self._break(stream, error)

    async def _break(self, stream: Stream, error: StreamBrokenError) -> None:
        log.warning("stream_broken", stream=stream.id, node=stream.node, because=str(error))
        self._open.pop(stream.id, None)
        stream.fail(error)
        await self._dismiss(stream.node, stream.id)

    async def _dismiss(self, node: NodeId, stream: StreamId) -> None:
        """Tell the node, once, to stop working on a stream; if it is lost, the missing lease tells."""
        if stream in self._dismissed:
            return
        self._dismissed.append(stream)
        with suppress(CortexError):
            await self._bus.publish(control(node, stream), Cancel(stream))

    async def _lease(self, node: NodeId) -> None:
        """Send leases while streams are open on `node`; give it up when it is silent for too long.

        Silence is counted in leases, not in seconds, so that a pause of our own is not held against it.
        """
        silent_s = 0.0
        reply = tokens(self._bus.instance, node, _MANY).subject
        while streams := self._on(node):
            self._heard.discard(node)
            lease = Lease(self._bus.instance, tuple(s.id for s in streams))
            with suppress(CortexError):
                await self._bus.publish(control(node, _MANY), lease, reply=reply)
            await asyncio.sleep(LEASE_PERIOD_S)
            silent_s = 0.0 if node in self._heard else silent_s + LEASE_PERIOD_S
            if silent_s >= NODE_SILENCE_LIMIT_S:
                self._lose(node, f"it was silent for {silent_s:g} s")
        self._heard.discard(node)
        del self._leasing[node]

    def _lose(self, node: NodeId, because: str) -> None:
        lost = self._on(node)
        if lost:
            log.warning("node_lost", node=node, streams=len(lost), because=because)
        for stream in lost:
            del self._open[stream.id]
            stream.fail(NodeLostError(f"node {node} was lost during the request: {because}"))


@asynccontextmanager
async def streams(bus: Bus) -> AsyncIterator[Streams]:
    """Listen for tokens while open."""
    listening = Streams(bus)
    topic = tokens(bus.instance, ANY, ANY)
    heard = await bus.hear(topic, listening.hear, unanswered=listening.unanswered)
    try:
        yield listening
    finally:
        listening.close()
        await heard.stop()
