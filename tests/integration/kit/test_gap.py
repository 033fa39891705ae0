"""The bus before it has a connection, while it has none, and when it is left."""

import asyncio

import pytest
from structlog.testing import capture_logs

from builders.links import LIMIT_S, NEWS, Listener, client_of, connected, fill, settled
from conftest import NatsServer
from cortex_kit.bus import Bus
from cortex_kit.guards import Pace
from cortex_kit.settings import SettingsError
from cortex_proto.errors import BusError
from cortex_proto.placement import Epoch


async def test_a_bus_waits_for_a_server_that_is_not_there_yet_and_says_so_once(
    spare_server: NatsServer,
) -> None:
    with capture_logs() as logs:
        waiting = asyncio.create_task(greet(spare_server.url))
        await settled(lambda: bool(logs))

        spare_server.start()

        await asyncio.wait_for(waiting, LIMIT_S)
    assert [entry["event"] for entry in logs] == ["waiting_for_nats"]


async def greet(url: str) -> None:
    async with connected(url, Pace(gap_s=0.0)) as bus:
        await bus.barrier()
        await bus.publish(NEWS, Epoch(1))


async def test_a_bus_that_waits_for_its_server_can_be_given_up(spare_server: NatsServer) -> None:
    with capture_logs() as logs:
        waiting = asyncio.create_task(greet(spare_server.url))
        await settled(lambda: bool(logs))

        waiting.cancel()
        await asyncio.wait([waiting], timeout=LIMIT_S)

    assert waiting.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_url_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"nats\.url"):
        await greet("nats://127.0.0.1:port")


async def test_a_short_gap_is_bridged(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as bus:
        listener = Listener()
        await listener.start(bus)
        nats_server.kill()
        await settled(lambda: not bus.is_connected)

        await bus.publish(NEWS, Epoch(1))
        nats_server.start()

        assert await listener.next() == Epoch(1)


async def test_after_a_longer_gap_publishing_fails_at_once(nats_server: NatsServer) -> None:
    async with connected(nats_server.url, Pace(gap_s=0.0)) as bus:
        nats_server.kill()
        await settled(lambda: client_of(bus).is_reconnecting and bus._link._down_since is not None)

        with pytest.raises(BusError, match="not connected to NATS for"):
            await bus.publish(NEWS, Epoch(1))


async def test_what_is_buffered_in_a_gap_is_bounded(nats_server: NatsServer) -> None:
    async with connected(nats_server.url, Pace(gap_s=3600.0)) as bus:
        nats_server.kill()
        await settled(lambda: not bus.is_connected)

        with pytest.raises(BusError, match="nothing can be sent"):
            await fill(bus)


async def test_what_was_published_before_leaving_arrives(bus: Bus, nats_server: NatsServer) -> None:
    listener = Listener()
    await listener.start(bus)
    await bus.barrier()

    async with connected(nats_server.url) as leaving:
        await leaving.hear(NEWS, Listener().hear)  # closing a socket with unread bytes resets it
        for n in range(20_000):
            await leaving.publish(NEWS, Epoch(n))

    for n in range(20_000):
        assert await listener.next() == Epoch(n)


async def test_a_bus_can_be_left_while_the_server_is_away(nats_server: NatsServer) -> None:
    async with asyncio.timeout(LIMIT_S), connected(nats_server.url) as bus:
        await bus.hear(NEWS, Listener().hear)
        nats_server.kill()
        await settled(lambda: not bus.is_connected)

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_bus_can_be_left_while_the_server_is_silent(nats_server: NatsServer) -> None:
    async with asyncio.timeout(LIMIT_S), connected(nats_server.url, Pace()) as bus:
        await bus.hear(NEWS, Listener().hear)
        nats_server.freeze()

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_replies_come_to_an_inbox_of_this_instance_alone(bus: Bus) -> None:
    inbox = client_of(bus).new_inbox()

    assert inbox.startswith(f"_INBOX.test.{bus.instance}.")
