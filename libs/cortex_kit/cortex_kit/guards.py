"""What keeps nats-py 2.16 from going deaf, hanging or giving up; design/bus.md 3.2 numbers its defects."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from nats.aio.client import Client, Srv

from cortex_proto.errors import PayloadTooLargeError

log = structlog.get_logger()

HEADROOM_BYTES = 4096
"""Kept free below the server's max_payload, which counts the headers too (defect 5)."""
MAX_SUBJECT_BYTES = 2048
"""Subject and reply together: a control line over 4,096 bytes makes the server hang up (defect 5)."""
UNACKNOWLEDGED_LIMIT_S = 6
"""A link that leaves our bytes unacknowledged for so long is dead (defect 3)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the link looks after itself."""

    ping_s: int = 5
    watch_s: float = 2.0
    """Between two round trips of the watchdog, and how long it waits for each."""
    first_retry_s: float = 0.1
    last_retry_s: float = 5.0
    gap_s: float = 2.0
    """Without a connection, messages are buffered for so long, then refused."""
    lost_s: float = 60.0
    """A client that nats-py gave up, and that could not be rebuilt for so long, is lost."""

    def retry_s(self, attempt: int) -> float:
        """Wait before the `attempt`-th try (from 0): doubling, and jittered against a herd."""
        longest: float = min(self.last_retry_s, self.first_retry_s * 2 ** min(attempt, 16))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, no secret


class HardenedClient(Client):
    """nats-py's client, whose sockets notice a dead peer and whose publish can be cancelled.

    Inheritance, because nats-py offers no other way to reach each new socket.
    """

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        """Send; a cancellation that came meanwhile is not swallowed (defect 4)."""
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        await super().publish(subject, payload, reply, headers)
        if task.cancelling() > before:
            raise asyncio.CancelledError

    def abort(self) -> None:
        """Drop the connection without waiting for unsent bytes: a plain close would wait for ever."""
        if writer := self._writer():
            writer.transport.abort()

    def socket(self) -> socket.socket:
        """Return the socket of the present connection."""
        writer = self._writer()
        assert writer is not None
        sock: socket.socket = writer.get_extra_info("socket")
        return sock

    async def _connect_to_server(self, s: Srv) -> None:
        self.abort()  # an attempt that failed half-way is left open by nats-py
        await super()._connect_to_server(s)
        harden(self.socket())

    def _writer(self) -> asyncio.StreamWriter | None:
        return getattr(self._transport, "_io_writer", None)


def harden(sock: socket.socket) -> None:
    """Let the kernel give up on a peer that is silent, or acknowledges nothing."""
    options = {
        "TCP_USER_TIMEOUT": UNACKNOWLEDGED_LIMIT_S * 1000,
        "TCP_KEEPIDLE": UNACKNOWLEDGED_LIMIT_S,
        "TCP_KEEPINTVL": 2,
        "TCP_KEEPCNT": 3,
    }
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # each system has some of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def guarded(callback: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
    """Wrap a callback of nats-py: an exception in it would end the read loop or the reconnect (defect 9)."""

    async def call(*args: Any) -> None:
        try:
            await callback(*args)
        except Exception:  # whatever it is, the connection must live
            with suppress(Exception):  # the log itself may be what is broken
                log.exception("bus_callback_failed", callback=getattr(callback, "__name__", "?"))

    return call


def check_size(subject: str, payload: bytes, headers: Mapping[str, str] | None, max_payload: int) -> None:
    """Refuse what would make the server cut the connection; `subject` includes the reply subject.

    Raises:
        PayloadTooLargeError: the message is over the limit; the text says both numbers.
    """
    if len(subject) > MAX_SUBJECT_BYTES:
        raise PayloadTooLargeError(
            f"a subject of {len(subject)} bytes is over the limit of {MAX_SUBJECT_BYTES}"
        )
    limit = max_payload - HEADROOM_BYTES
    size = len(payload) + sum(len(k) + len(v) + 4 for k, v in (headers or {}).items())
    if size > limit:
        raise PayloadTooLargeError(f"a message of {size} bytes is over the {limit} that the bus carries")
