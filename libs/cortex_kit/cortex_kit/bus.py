"""The bus: typed messages over NATS, for every cortex process."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from cortex_kit import settings
from cortex_kit.guards import Pace
from cortex_kit.link import NO_RESPONDERS, Link, RawMessage
from cortex_proto.errors import BadRequestError, BusError, CortexError, Failed, from_wire, to_wire
from cortex_proto.ids import InstanceId
from cortex_proto.subjects import Ask, Call, M, Reply, Topic
from cortex_proto.telemetry import Record
from cortex_proto.wire import pack, to_json

log = structlog.get_logger()

Handler = Callable[[M, str], Awaitable[None]]
"""Takes a message and its subject. Called in order, so it returns soon: spawn a task for work."""

_BARRIER_LIMIT_S = 5.0
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Subscription:
    """Something that is being heard or answered until `stop`, or until the bus is left."""

    _stop: Callable[[], Coroutine[Any, Any, None]]

    async def stop(self) -> None:
        """Stop at once; messages that wait are dropped. Not for the subscription's own handler to call."""
        await self._stop()


class Bus:
    """Publish, hear, ask and answer typed messages. Made by `connect`."""

    def __init__(self, link: Link, service: str, instance: InstanceId) -> None:
        self.service = service
        self.instance = instance
        self.num_garbage = 0
        """Messages that could not be read and were dropped."""
        self._link = link
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def is_connected(self) -> bool:
        """Whether messages go through at present, as far as is known."""
        return self._link.is_connected

    @property
    def lost(self) -> asyncio.Future[str]:
        """Resolves, with the reason, when there is no hope left for this connection."""
        return self._link.lost

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call `callback` after each reconnect, when messages may have been lost."""
        self._link.reconnected.append(callback)

    async def publish(self, topic: Topic[M], message: M, *, reply: str | None = None) -> None:
        """Send a message; it is lost if nobody listens, or if the server dies at this moment.

        Raises:
            PayloadTooLargeError: it is over the server's limit.
            BusError: there is no connection.
        """
        await self._link.publish(topic.subject, pack(message), reply=reply or "")

    async def publish_record(self, subject: str, record: Record) -> None:
        """Send a metric or event, as JSON.

        Raises:
            PayloadTooLargeError: it is over the server's limit.
            BusError: there is no connection.
        """
        await self._link.publish(subject, to_json(record))

    async def hear(
        self,
        topic: Topic[M],
        handler: Handler[M],
        *,
        queue: str = "",
        unanswered: Callable[[str], None] | None = None,
    ) -> Subscription:
        """Call `handler` with each message on `topic`, in order; what cannot be read is counted and dropped.

        `unanswered(subject)` is called instead if nobody listened where something was published
        with `subject` as its reply. A key of a bucket that was deleted or expired is skipped.
        """
        decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(topic.message)

        async def deliver(raw: RawMessage) -> None:
            if raw.status is not None:
                if raw.status == NO_RESPONDERS and unanswered is not None:
                    unanswered(raw.subject)
            elif not _is_tombstone(raw):
                try:
                    message = decoder.decode(raw.payload)
                except _GARBAGE as error:
                    self._drop(raw, error)
                    return
                await handler(message, raw.subject)

        return self._stoppable(await self._link.subscribe(topic.subject, deliver, queue=queue))

    async def hear_raw(self, subject: str, handler: Callable[[str, bytes], Awaitable[None]]) -> Subscription:
        """Call `handler` with the subject and the bytes of each message, in order."""

        async def deliver(raw: RawMessage) -> None:
            if raw.status is None:
                await handler(raw.subject, raw.payload)

        return self._stoppable(await self._link.subscribe(subject, deliver))

    async def answer(
        self, call: Call[Ask, Reply], handler: Callable[[Ask], Awaitable[Reply]], *, queue: str = ""
    ) -> Subscription:
        """Answer each ask with what `handler` returns or raises; each in a task of its own."""
        decoder: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(call.ask)

        async def respond(raw: RawMessage) -> None:
            await self._respond(raw.reply, await self._outcome(raw, decoder, handler))

        async def deliver(raw: RawMessage) -> None:
            task = asyncio.get_running_loop().create_task(respond(raw))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        return self._stoppable(await self._link.subscribe(call.subject, deliver, queue=queue))

    async def ask(self, call: Call[Ask, Reply], message: Ask, *, timeout_s: float) -> Reply:
        """Ask and wait for the answer.

        Raises:
            PayloadTooLargeError: the question is over the server's limit.
            BusError: nobody answers, not in time, or not in words that can be read.
            CortexError: whatever the other side raised.
        """
        raw = await self._link.request(call.subject, pack(message), timeout_s=timeout_s)
        try:
            reply: Reply | Failed = msgspec.msgpack.decode(raw.payload, type=call.reply | Failed)
        except _GARBAGE as error:
            self._drop(raw, error)
            raise BusError(f"the answer on {call.subject} cannot be read: {error}") from error
        if isinstance(reply, Failed):
            raise from_wire(reply)
        return reply

    async def request_raw(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> RawMessage:
        """Ask in bytes; for kv.py.

        Raises:
            PayloadTooLargeError: the question is over the server's limit.
            BusError: nobody answers, or not in time.
        """
        return await self._link.request(subject, payload, headers=headers, timeout_s=timeout_s)

    async def request_many(self, subject: str, payload: bytes, *, timeout_s: float) -> list[RawMessage]:
        """Ask in bytes and gather the answers, up to and with the first that has a status; for kv.py.

        Raises:
            PayloadTooLargeError: the question is over the server's limit.
            BusError: nobody answers, or the last answer does not come in time.
        """
        answers: list[RawMessage] = []
        complete = asyncio.Event()

        async def gather(raw: RawMessage) -> None:
            answers.append(raw)
            if raw.status is not None:
                complete.set()

        inbox = f"{self._link.inbox}.{secrets.token_hex(8)}"
        key = await self._link.subscribe(inbox, gather)
        try:
            await self._link.publish(subject, payload, reply=inbox)
            async with asyncio.timeout(timeout_s):
                await complete.wait()
        except TimeoutError as error:
            raise BusError(f"no last answer on {subject} in {timeout_s:g} s") from error
        finally:
            await self._link.unsubscribe(key)
        if answers[-1].status == NO_RESPONDERS:
            raise BusError(f"nobody answers on {subject}")
        return answers

    async def barrier(self) -> None:
        """Return when the server has processed every subscribe and publish made here before.

        Raises:
            BusError: the server does not answer.
        """
        await self._link.barrier(_BARRIER_LIMIT_S)

    async def leave(self) -> None:
        """Stop answering and close the connection; `connect` does it."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._link.close()

    async def _outcome(
        self,
        raw: RawMessage,
        decoder: "msgspec.msgpack.Decoder[Ask]",
        handler: Callable[[Ask], Awaitable[Reply]],
    ) -> Reply | Failed:
        try:
            question = decoder.decode(raw.payload)
        except _GARBAGE as error:
            self._drop(raw, error)
            return to_wire(BadRequestError(f"the question cannot be read: {error}"))
        try:
            return await handler(question)
        except CortexError as error:
            return to_wire(error)
        except Exception as error:
            log.exception("answer_failed", subject=raw.subject)
            return to_wire(error)

    async def _respond(self, reply: str, outcome: object) -> None:
        if not reply:
            return
        try:
            await self._link.publish(reply, pack(outcome))
        except CortexError as error:
            log.warning("answer_not_sent", because=str(error))

    def _drop(self, raw: RawMessage, error: Exception) -> None:
        self.num_garbage += 1
        log.warning("garbage_dropped", subject=raw.subject, because=str(error), so_far=self.num_garbage)

    def _stoppable(self, key: int) -> Subscription:
        return Subscription(lambda: self._link.unsubscribe(key))


def _is_tombstone(raw: RawMessage) -> bool:
    """Whether this is no message, but says that a key of a bucket was deleted or has expired."""
    return not raw.payload and ("KV-Operation" in raw.headers or "Nats-Marker-Reason" in raw.headers)


@asynccontextmanager
async def connect(
    nats: settings.Nats,
    *,
    service: str,
    instance: InstanceId,
    pace: Pace = Pace(),  # noqa: B008
) -> AsyncIterator[Bus]:
    """Connect, waiting for the server as long as it takes; leaving unsubscribes, then closes."""
    link = Link(nats.url, name=instance, inbox=f"_INBOX.{service}.{instance}", pace=pace)
    await link.open()
    bus = Bus(link, service, instance)
    try:
        yield bus
    finally:
        await bus.leave()
