"""For tests of the bus's connection: one at a quick pace, and someone who hears what comes over it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cortex_kit.bus import Bus, connect
from cortex_kit.guards import HardenedClient, Pace
from cortex_kit.ids import new_instance
from cortex_kit.settings import Nats
from cortex_proto.placement import Epoch
from cortex_proto.subjects import Topic

LIMIT_S = 20.0
QUICK = Pace(ping_s=3600, watch_s=0.1, first_retry_s=0.001, last_retry_s=0.002)
"""Impatient, and without nats-py's own pings, so that the watchdog alone is under test."""
BIG: Topic[str] = Topic("big", str)
NEWS: Topic[Epoch] = Topic("news", Epoch)


@asynccontextmanager
async def connected(url: str, pace: Pace = QUICK) -> AsyncIterator[Bus]:
    """A bus at that pace, for the length of the block."""
    async with connect(Nats(url=url), service="test", instance=new_instance("test"), pace=pace) as bus:
        yield bus


class Listener:
    """Hears the news, and can tell when a bus has reconnected."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Epoch] = asyncio.Queue()
        self.reconnected = asyncio.Event()

    async def start(self, bus: Bus) -> None:
        """Begin to hear."""
        await bus.hear(NEWS, self.hear)
        bus.on_reconnect(self._note)

    async def next(self) -> Epoch:
        """Wait for the next message."""
        return await asyncio.wait_for(self.heard.get(), LIMIT_S)

    async def reconnect(self) -> None:
        """Wait for the next reconnect."""
        await asyncio.wait_for(self.reconnected.wait(), LIMIT_S)
        self.reconnected.clear()

    async def hear(self, message: Epoch, _subject: str) -> None:
        self.heard.put_nowait(message)

    async def _note(self) -> None:
        self.reconnected.set()


def client_of(bus: Bus) -> HardenedClient:
    """The nats-py client that `bus` uses at present."""
    client = bus._link._client
    assert client is not None
    return client


async def settled(condition: Callable[[], bool]) -> None:
    """Let the loop run until `condition` holds, for what nats-py has no event."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  # as it says
            await asyncio.sleep(0)


async def fill(bus: Bus) -> None:
    """Send more than the socket, and the buffer behind it, can take."""
    for _ in range(32):
        await bus.publish(BIG, "x" * 1024 * 1024)
