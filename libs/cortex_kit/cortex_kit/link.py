"""One connection to NATS that heals itself; together with guards.py all that knows nats-py."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from cortex_kit.guards import HardenedClient, Pace, check_size, guarded
from cortex_kit.settings import SettingsError
from cortex_kit.tasks import end
from cortex_proto.errors import BusError

log = structlog.get_logger()

NO_RESPONDERS = "503"
_CLOSE_LIMIT_S = 2.0
_FLUSH_LIMIT_S = 5.0
_REFUSED = (nats.errors.Error, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class RawMessage:
    """One message as it came."""

    subject: str
    reply: str
    payload: bytes
    headers: Mapping[str, str]

    @property
    def status(self) -> str | None:
        """What the server itself says with it: "503" if nobody listens; None on a message of somebody's."""
        return self.headers.get("Status")


Deliver = Callable[[RawMessage], Awaitable[None]]


@dataclass(slots=True)
class _Listening:
    """One subscription, and where it is in force at present."""

    subject: str
    queue: str
    deliver: Deliver
    client: HardenedClient | None = None
    subscription: Subscription | None = None


class Link:
    """Publishes, listens and asks in bytes; survives whatever happens to the server."""

    def __init__(self, url: str, *, name: str, inbox: str, pace: Pace) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Resolves, with the reason, when the client could not be rebuilt for `pace.lost_s`."""
        self.reconnected: list[Callable[[], Awaitable[None]]] = []
        self.inbox = inbox
        self._servers = [u.strip() for u in url.split(",")]
        self._name = name
        self._pace = pace
        self._client: HardenedClient | None = None
        self._listening: dict[int, _Listening] = {}
        self._keys = itertools.count()
        self._gone = asyncio.Event()
        self._down_since: float | None = None
        self._misses = 0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life

    async def open(self) -> None:
        """Connect, however long it takes, and look after the connection from then on.

        Raises:
            SettingsError: the url is none.
        """
        try:
            self._client = await self._connected_client()
        except (nats.errors.Error, ValueError) as error:
            raise SettingsError(f"`nats.url` {','.join(self._servers)!r}: {_text(error)}") from error
        self._down_since = None
        self._spawn(self._watch())
        self._spawn(self._keep())

    async def close(self) -> None:
        """Unsubscribe, make sure that all was sent, close. Never nc.drain(): its flush is no barrier."""
        self._closing = True
        await end(*self._tasks)
        if self._client is None:
            return
        with suppress(BusError):
            for key in list(self._listening):
                await self.unsubscribe(key)
            if self._client.is_connected:
                await self.barrier(_CLOSE_LIMIT_S)
        try:
            async with asyncio.timeout(_CLOSE_LIMIT_S):
                await self._client.close()
        except _REFUSED:
            self._client.abort()

    @property
    def is_connected(self) -> bool:
        """Whether messages go through at present, as far as is known."""
        return self._client is not None and self._client.is_connected

    # -- messages

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send one message, or buffer it during a short gap.

        Raises:
            PayloadTooLargeError: it is over the server's limit.
            BusError: there is no connection.
        """
        client = self._usable()
        check_size(subject + reply, payload, headers, client.max_payload)
        try:
            await client.publish(subject, payload, reply, _plain(headers))
        except _REFUSED as error:
            raise BusError(f"nothing can be sent on {subject}: {_text(error)}") from error

    async def request(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, timeout_s: float
    ) -> RawMessage:
        """Send one message and return the first answer.

        Raises:
            PayloadTooLargeError: it is over the server's limit.
            BusError: nobody listens there, there is no answer in time, or there is no connection.
        """
        client = self._usable()
        check_size(subject + self.inbox, payload, headers, client.max_payload)
        try:
            return _raw(await client.request(subject, payload, timeout_s, headers=_plain(headers)))
        except nats.errors.NoRespondersError as error:
            raise BusError(f"nobody answers on {subject}") from error
        except TimeoutError as error:
            raise BusError(f"no answer on {subject} in {timeout_s:g} s") from error
        except _REFUSED as error:
            raise BusError(f"cannot ask on {subject}: {_text(error)}") from error

    async def barrier(self, timeout_s: float) -> None:
        """Return when the server has processed all that was sent before.

        A message to nobody comes back as status 503 behind everything else. Not flush(): it
        overtakes what is still buffered (defect 1), and cancelled it kills the read loop (defect 2).

        Raises:
            BusError: the server did not answer in time.
        """
        client = self._usable()
        try:
            await client.request(f"{self.inbox}.nobody", timeout=timeout_s)
        except nats.errors.NoRespondersError:
            return
        except _REFUSED as error:
            raise BusError(f"the NATS server does not answer: {_text(error)}") from error

    # -- subscriptions

    async def subscribe(self, subject: str, deliver: Deliver, *, queue: str = "") -> int:
        """Listen, over every reconnect and rebuild; `deliver` is called in order. Returns a key to stop by.

        Raises:
            BusError: the subject is none.
        """
        key = next(self._keys)
        self._listening[key] = listening = _Listening(subject, queue, deliver)
        if self._client is not None and not self._client.is_closed:
            try:
                await self._listen(listening, self._client)
            except _REFUSED as error:
                del self._listening[key]
                raise BusError(f"cannot listen on {subject}: {_text(error)}") from error
        return key

    async def unsubscribe(self, key: int) -> None:
        """Stop listening at once: what waits is dropped, and a delivery under way is cancelled."""
        listening = self._listening.pop(key, None)
        if listening is None or listening.subscription is None:
            return
        with suppress(*_REFUSED):  # a connection that is gone has no subscriptions
            await listening.subscription.unsubscribe()

    async def _listen(self, listening: _Listening, client: HardenedClient) -> None:
        if listening.client is client:
            return

        async def deliver(message: Msg) -> None:
            try:
                await listening.deliver(_raw(message))
            except Exception:
                log.exception("bus_delivery_failed", subject=message.subject)

        listening.client = client
        listening.subscription = await client.subscribe(listening.subject, listening.queue, cb=deliver)

    # -- looking after the connection

    async def _connected_client(self) -> HardenedClient:
        client = HardenedClient()
        try:
            await client.connect(
                servers=self._servers,
                name=self._name,
                inbox_prefix=self.inbox,
                ping_interval=self._pace.ping_s,
                max_outstanding_pings=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                reconnect_to_server_handler=self._choose_server,
                flush_timeout=_FLUSH_LIMIT_S,
                error_cb=guarded(self._on_error),
                disconnected_cb=guarded(self._on_disconnected),
                reconnected_cb=guarded(self._on_reconnected),
                closed_cb=guarded(self._on_closed),
            )
        except BaseException:
            client.abort()
            raise
        return client

    async def _watch(self) -> None:
        """Reconnect when the server stays silent, whatever nats-py believes (defect 2)."""
        while True:
            await asyncio.sleep(self._pace.watch_s)
            await guarded(self._look)()

    async def _look(self) -> None:
        client = self._client
        if client is None or not client.is_connected:
            self._misses = 0
            return
        try:
            await self.barrier(self._pace.watch_s)
            self._misses = 0
        except BusError as error:
            self._misses += 1
            if self._misses >= 2:
                self._misses = 0
                client.abort()
                await client.force_reconnect()
            log.warning("bus_silent", because=str(error))

    async def _keep(self) -> None:
        """Build a new client each time nats-py has given one up for good (defect 5)."""
        while True:
            await self._gone.wait()
            declare = asyncio.get_running_loop().call_later(self._pace.lost_s, self._declare_lost)
            await self._rebuild()
            declare.cancel()
            self._back_again()
            log.warning("bus_rebuilt")

    async def _rebuild(self) -> None:
        for attempt in itertools.count():
            self._gone.clear()
            await asyncio.sleep(self._pace.retry_s(attempt))
            self._client = client = await self._connected_client()
            with suppress(*_REFUSED):
                for listening in list(self._listening.values()):
                    await self._listen(listening, client)
                await client.request(f"{self.inbox}.nobody", timeout=self._pace.watch_s)
            if not self._gone.is_set():
                return

    def _declare_lost(self) -> None:
        if not self.lost.done():
            self.lost.set_result(f"no NATS client could be built for {self._pace.lost_s:g} s")

    def _choose_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """Take the server that failed least, after a growing, jittered wait (defect 7)."""
        server = min(servers, key=lambda s: s.reconnects)
        return server, self._pace.retry_s(server.reconnects)

    def _usable(self) -> HardenedClient:
        if self._client is None or self._client.is_closed:
            raise BusError("not connected to NATS")
        if self._down_since is not None:
            down_s = asyncio.get_running_loop().time() - self._down_since
            if down_s > self._pace.gap_s:
                raise BusError(f"not connected to NATS for {down_s:.0f} s")
        return self._client

    # -- what nats-py tells; all of it guarded

    async def _on_error(self, error: Exception) -> None:
        if self._client is None:
            self._say_waiting(error)
        elif isinstance(error, nats.errors.SlowConsumerError):
            log.warning("bus_slow_consumer", subject=error.subject)
        elif "permissions violation" in str(error).lower():
            log.error("bus_permission_denied", because=str(error))
        else:
            log.debug("bus_error", because=_text(error))

    def _say_waiting(self, error: Exception) -> None:
        if self._down_since is None:
            self._down_since = asyncio.get_running_loop().time()
            log.warning("waiting_for_nats", url=self._servers, because=_text(error))

    async def _on_disconnected(self) -> None:
        self._down_since = asyncio.get_running_loop().time()
        if not self._closing:
            log.warning("bus_disconnected")

    async def _on_reconnected(self) -> None:
        self._back_again()
        log.info("bus_reconnected")

    async def _on_closed(self) -> None:
        if not self._closing:
            self._gone.set()
            log.error("bus_closed", because=_text(self._client.last_error if self._client else None))

    def _back_again(self) -> None:
        self._down_since = None
        self._spawn(self._tell_reconnected())

    async def _tell_reconnected(self) -> None:
        for callback in self.reconnected:
            await guarded(callback)()

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _raw(message: Msg) -> RawMessage:
    return RawMessage(message.subject, message.reply, message.data, message.headers or {})


def _plain(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    return dict(headers) if headers else None


def _text(error: Exception | None) -> str:
    return str(error) or type(error).__name__
