"""The guards against nats-py's defects, each against a real server; design/bus.md 3.2 has the numbers."""

import asyncio
import socket

import pytest
import structlog

from builders.links import LIMIT_S, NEWS, Listener, client_of, connected, fill, settled
from conftest import BusFactory, NatsServer
from cortex_kit.bus import Bus
from cortex_kit.guards import HEADROOM_BYTES, HardenedClient, Pace
from cortex_proto.errors import BusError, PayloadTooLargeError
from cortex_proto.placement import Epoch
from cortex_proto.subjects import Topic

MAX_PAYLOAD = 8 * 1024 * 1024


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
    nats_server: NatsServer, spare_server: NatsServer
) -> None:
    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        spare_server.start()
        client_of(bus).set_server_pool([nats_server.url, spare_server.url])
        nats_server.freeze()
        filling = asyncio.create_task(fill(bus))

        await listener.reconnect()

        await asyncio.gather(filling, return_exceptions=True)  # it may have been refused meanwhile
        await bus.publish(NEWS, Epoch(1))
        assert await listener.next() == Epoch(1)


# -- defect 4: publish() swallows a cancellation while the buffer is full


async def test_a_publish_that_waits_for_room_can_be_cancelled(nats_server: NatsServer) -> None:
    async with connected(nats_server.url, Pace(watch_s=3600)) as bus:
        nats_server.freeze()
        filling = asyncio.create_task(fill(bus))
        await settled(lambda: client_of(bus).pending_data_size > 2 * 1024 * 1024)

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
        stopped = await bus.hear(NEWS, listener.hear)
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
        await settled(lambda: client.is_closed)
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
        structlog.configure(processors=[broken])
        try:
            nats_server.restart()
            await listener.reconnect()
        finally:
            structlog.reset_defaults()

        await bus.publish(NEWS, Epoch(1))
        assert await listener.next() == Epoch(1)
