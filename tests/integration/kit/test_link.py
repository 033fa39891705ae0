"""The guards against nats-py's defects, each against a real server; design/bus.md 3.2 has the numbers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from cortex_kit.bus import Bus, connect
from cortex_kit.guards import HEADROOM_BYTES, HardenedClient, Pace
from cortex_kit.ids import new_instance
from cortex_kit.settings import Nats, SettingsError
from cortex_proto.errors import BusError, PayloadTooLargeError
from cortex_proto.placement import Epoch
from cortex_proto.subjects import Topic
from structlog.testing import capture_logs

from conftest import BusFactory, NatsServer

LIMIT_S = 20.0
MAX_PAYLOAD = 8 * 1024 * 1024
QUICK = Pace(ping_s=3600, watch_s=0.1, first_retry_s=0.001, last_retry_s=0.002)
BIG: Topic[str] = Topic("big", str)
NEWS: Topic[Epoch] = Topic("news", Epoch)


@asynccontextmanager
async def connected(url: str, pace: Pace = QUICK) -> AsyncIterator[Bus]:
    async with connect(Nats(url=url), service="test", instance=new_instance("test"), pace=pace) as bus:
        yield bus


class Listener:
    """Hears the news, and can tell when a bus has reconnected."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Epoch] = asyncio.Queue()
        self.reconnected = asyncio.Event()

    async def start(self, bus: Bus) -> None:
        await bus.hear(NEWS, self._hear)
        bus.on_reconnect(self._note)

    async def next(self) -> Epoch:
        return await asyncio.wait_for(self.heard.get(), LIMIT_S)

    async def reconnect(self) -> None:
        await asyncio.wait_for(self.reconnected.wait(), LIMIT_S)
        self.reconnected.clear()

    async def _hear(self, message: Epoch, _subject: str) -> None:
        self.heard.put_nowait(message)

    async def _note(self) -> None:
        self.reconnected.set()


def client_of(bus: Bus) -> HardenedClient:
    client = bus._link._client
    assert client is not None
    return client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0)  # let the loop run


# -- defect 1: flush() is no barrier


async def test_after_a_barrier_another_connection_reaches_every_subscription(
    bus: Bus, bus_factory: BusFactory
) -> None:
    other = await bus_factory("other")

    for n in range(300):
        topic: Topic[Epoch] = Topic(f"round.{n}", Epoch)
        got = asyncio.Event()

        async def hear(_message: Epoch, _subject: str, got: asyncio.Event = got) -> None:
            got.set()

        subscription = await bus.hear(topic, hear)
        await bus.barrier()
        await other.publish(topic, Epoch(n))
        await other.barrier()
        await asyncio.wait_for(got.wait(), 2.0)
        await subscription.stop()


# -- defect 2: a cancelled flush() kills the read loop


async def test_a_cancelled_barrier_does_no_harm(nats_server: NatsServer) -> None:
    async with connected(nats_server.url, Pace(watch_s=3600)) as bus:
        listener = Listener()
        await listener.start(bus)

        for _ in range(50):
            waiting = asyncio.create_task(bus.barrier())
            await asyncio.sleep(0)  # it has begun
            waiting.cancel()

        await bus.barrier()
        await bus.publish(NEWS, Epoch(1))
        assert await listener.next() == Epoch(1)
        assert not listener.reconnected.is_set()


async def test_a_client_gone_deaf_is_noticed_and_reconnected(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        await deafen(client_of(bus))

        await listener.reconnect()

        await bus.publish(NEWS, Epoch(1))
        assert await listener.next() == Epoch(1)


async def deafen(client: HardenedClient) -> None:
    """Do what no code of ours does: cancel a flush. The next PONG then ends nats-py's read loop."""
    flushing = asyncio.create_task(client.flush())
    await asyncio.sleep(0)  # it has begun
    flushing.cancel()
    assert client._reading_task is not None
    await asyncio.wait([client._reading_task], timeout=LIMIT_S)
    assert client.is_connected, "nats-py itself noticed: this guard can go"


async def test_a_server_gone_silent_is_left_for_another_though_bytes_are_unsent(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    second = NatsServer(tmp_path / "second")
    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        second.start()
        client_of(bus).set_server_pool([nats_server.url, second.url])
        nats_server.freeze()
        filling = asyncio.create_task(fill(bus))

        await listener.reconnect()

        await asyncio.gather(filling, return_exceptions=True)  # it may have been refused meanwhile
        await bus.publish(NEWS, Epoch(1))
        assert await listener.next() == Epoch(1)
    second.kill()


async def fill(bus: Bus) -> None:
    """Send more than the socket, and the buffer behind it, can take."""
    for _ in range(32):
        await bus.publish(BIG, "x" * 1024 * 1024)


# -- defect 4: publish() swallows a cancellation while the buffer is full


async def test_a_publish_that_waits_for_room_can_be_cancelled(nats_server: NatsServer) -> None:
    async with connected(nats_server.url, Pace(watch_s=3600)) as bus:
        nats_server.freeze()
        filling = asyncio.create_task(fill(bus))
        await until(lambda: client_of(bus).pending_data_size > 2 * 1024 * 1024)

        filling.cancel()
        await asyncio.wait([filling], timeout=LIMIT_S)

        assert filling.cancelled()
        nats_server.thaw()


# -- defect 3: a partition with unsent bytes hangs the reconnect


async def test_every_socket_gives_up_on_a_dead_peer_after_seconds(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        assert gives_up_soon(client_of(bus))

        nats_server.restart()
        await listener.reconnect()

        assert gives_up_soon(client_of(bus))


def gives_up_soon(client: HardenedClient) -> bool:
    sock = client.socket()
    user_timeout_ms = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    return user_timeout_ms == 6000 and sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


# -- defect 5: a poison message closes the client for good


async def test_a_message_with_its_headers_over_the_limit_is_refused_before_it_is_sent(bus: Bus) -> None:
    listener = Listener()
    await listener.start(bus)
    headers = {"Cortex-Proto": "1"}
    limit = MAX_PAYLOAD - HEADROOM_BYTES - len("Cortex-Proto: 1\r\n")
    with pytest.raises(BusError):  # carried, though nobody answers
        await bus.request_raw("nobody", b"x" * limit, headers, timeout_s=LIMIT_S)

    with pytest.raises(PayloadTooLargeError, match=f"over the {MAX_PAYLOAD - HEADROOM_BYTES}"):
        await bus.request_raw("nobody", b"x" * (limit + 1), headers, timeout_s=LIMIT_S)

    await bus.barrier()
    assert not listener.reconnected.is_set()


async def test_an_endless_subject_is_refused_before_it_is_sent(bus: Bus) -> None:
    with pytest.raises(PayloadTooLargeError, match="subject of 5000 bytes"):
        await bus.publish(Topic("s" * 5000, Epoch), Epoch(1))

    await bus.barrier()


async def test_a_client_closed_by_a_poison_message_is_rebuilt_with_its_subscriptions(
    nats_server: NatsServer,
) -> None:
    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        stopped = await bus.hear(NEWS, listener._hear)
        await stopped.stop()
        poisoned = client_of(bus)
        poisoning = asyncio.create_task(poison(poisoned))

        await listener.reconnect()

        assert poisoned.is_closed, "nats-py recovered by itself: this guard can go"
        for n in range(2):
            await bus.publish(NEWS, Epoch(n))
            assert await listener.next() == Epoch(n)
        assert listener.heard.empty()
        poisoning.cancel()


async def poison(client: HardenedClient) -> None:
    """Pass nats-py's check of the payload, and fail the server's, which counts the header too."""
    await client.publish("poison", b"x" * MAX_PAYLOAD, headers={"a": "b"})


async def test_a_bus_that_cannot_be_rebuilt_says_that_it_is_lost(nats_server: NatsServer) -> None:
    async with connected(nats_server.url, Pace(lost_s=0.05)) as bus:
        client = client_of(bus)
        poisoning = asyncio.create_task(poison(client))
        await until(lambda: client.is_closed)
        nats_server.kill()

        assert "no NATS client" in await asyncio.wait_for(bus.lost, LIMIT_S)
        with pytest.raises(BusError, match="not connected"):
            await bus.publish(NEWS, Epoch(1))
        poisoning.cancel()


# -- defect 7: it stops trying


async def test_a_server_that_is_away_for_long_is_found_again(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        nats_server.kill()
        await refuse_connections(nats_server.port, times=100)

        nats_server.start()
        await listener.reconnect()

        await bus.publish(NEWS, Epoch(1))
        assert await listener.next() == Epoch(1)


async def refuse_connections(port: int, times: int) -> None:
    """Be a server that hangs up on everyone."""
    done = asyncio.Event()
    count = 0

    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        writer.close()
        if count >= times:
            done.set()

    async with await asyncio.start_server(hang_up, "127.0.0.1", port):
        await asyncio.wait_for(done.wait(), LIMIT_S)


async def test_a_bus_waits_for_a_server_that_is_not_there_yet_and_says_so_once(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    with capture_logs() as logs:
        waiting = asyncio.create_task(greet(server.url))
        await until(lambda: bool(logs))

        server.start()

        await asyncio.wait_for(waiting, LIMIT_S)
    server.kill()
    assert [entry["event"] for entry in logs] == ["waiting_for_nats"]


async def greet(url: str) -> None:
    async with connected(url, Pace(gap_s=0.0)) as bus:
        await bus.barrier()
        await bus.publish(NEWS, Epoch(1))


async def test_a_bus_that_waits_for_its_server_can_be_given_up(tmp_path: Path) -> None:
    with capture_logs() as logs:
        waiting = asyncio.create_task(greet(NatsServer(tmp_path).url))
        await until(lambda: bool(logs))

        waiting.cancel()
        await asyncio.wait([waiting], timeout=LIMIT_S)

    assert waiting.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_url_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"nats\.url"):
        await greet("nats://127.0.0.1:port")


# -- defect 9: an exception in a callback ends the read loop or the reconnect


async def test_a_callback_that_raises_does_not_disturb_the_reconnect(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as bus:
        calls = 0

        async def fragile() -> None:
            nonlocal calls
            calls += 1
            raise ConnectionError("nats-py would take this for its own and reconnect again")

        bus.on_reconnect(fragile)
        listener = Listener()
        await listener.start(bus)

        nats_server.restart()
        await listener.reconnect()

        await bus.barrier()
        assert calls == 1


async def test_a_broken_log_does_not_end_the_reconnect(nats_server: NatsServer) -> None:
    def broken(*_args: object) -> dict[str, object]:
        raise OSError("disk full")

    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        structlog.configure(processors=[broken])  # type: ignore[list-item]
        try:
            nats_server.restart()
            await listener.reconnect()
        finally:
            structlog.reset_defaults()

        await bus.publish(NEWS, Epoch(1))
        assert await listener.next() == Epoch(1)


# -- without a connection; and the end


async def test_a_short_gap_is_bridged(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        nats_server.kill()
        await until(lambda: not bus.is_connected)

        await bus.publish(NEWS, Epoch(1))
        nats_server.start()

        assert await listener.next() == Epoch(1)


async def test_after_a_longer_gap_publishing_fails_at_once(nats_server: NatsServer) -> None:
    async with connected(nats_server.url, Pace(gap_s=0.0)) as bus:
        nats_server.kill()
        await until(lambda: client_of(bus).is_reconnecting and bus._link._down_since is not None)

        with pytest.raises(BusError, match="not connected to NATS for"):
            await bus.publish(NEWS, Epoch(1))


async def test_what_is_buffered_in_a_gap_is_bounded(nats_server: NatsServer) -> None:
    async with connected(nats_server.url, Pace(gap_s=3600.0)) as bus:
        nats_server.kill()
        await until(lambda: not bus.is_connected)

        with pytest.raises(BusError, match="nothing can be sent"):
            await fill(bus)


async def test_what_was_published_before_leaving_arrives(bus: Bus, nats_server: NatsServer) -> None:
    listener = Listener()
    await listener.start(bus)
    await bus.barrier()

    async with connected(nats_server.url) as leaving:
        for n in range(1000):
            await leaving.publish(NEWS, Epoch(n))

    for n in range(1000):
        assert await listener.next() == Epoch(n)


async def test_a_bus_can_be_left_while_the_server_is_away(nats_server: NatsServer) -> None:
    async with asyncio.timeout(LIMIT_S), connected(nats_server.url) as bus:
        await bus.hear(NEWS, Listener()._hear)
        nats_server.kill()
        await until(lambda: not bus.is_connected)

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_bus_can_be_left_while_the_server_is_silent(nats_server: NatsServer) -> None:
    async with asyncio.timeout(LIMIT_S), connected(nats_server.url, Pace()) as bus:
        await bus.hear(NEWS, Listener()._hear)
        nats_server.freeze()

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_replies_come_to_an_inbox_of_this_instance_alone(bus: Bus) -> None:
    inbox = client_of(bus).new_inbox()

    assert inbox.startswith(f"_INBOX.test.{bus.instance}.")
