"""Requests for a model that is not loaded: they wait, hear why, and may leave."""

import asyncio
from collections.abc import AsyncIterator

from builders.gateway import LIMIT_S, GatewayFactory, NeuronFactory, Running
from builders.peers import TINY, FakeNeuron, FakeScheduler
from conftest import BusFactory
from cortex_proto.errors import NoRoomError
from cortex_proto.fleet import Loading
from cortex_proto.ids import NodeId
from cortex_proto.placement import Placed


async def comments(lines: AsyncIterator[str], num: int) -> list[str]:
    """Read until so many comments have come."""
    found: list[str] = []
    async with asyncio.timeout(LIMIT_S):
        async for line in lines:
            found += [line] if line.startswith(":") else []
            if len(found) == num:
                break
    return found


async def test_a_stream_hears_how_the_load_goes_and_is_then_served(
    gateway: Running, scheduler: FakeScheduler, bus_factory: BusFactory
) -> None:
    neuron = FakeNeuron(await bus_factory("neuron"))
    scheduler.reply = Placed(NodeId("a"), "the only node")
    await neuron.report(Loading("weights", 0.45))

    async with gateway.stream() as response:
        lines = response.aiter_lines()
        assert await comments(lines, 2) == [": loading 45 % (weights)"] * 2
        await neuron.start()
        rest = [line async for line in lines]
    await neuron.stop()

    assert response.status_code == 200
    assert rest[-2] == "data: [DONE]"
    done = await gateway.done()
    assert done.cold_start
    assert done.outcome == "stop"


async def test_the_scheduler_is_asked_once_a_period_however_many_wait(
    gateway: Running, scheduler: FakeScheduler, neurons: NeuronFactory
) -> None:
    asking = [asyncio.ensure_future(gateway.chat()) for _ in range(10)]
    async with asyncio.timeout(LIMIT_S):
        asked = [await scheduler.asked.get() for _ in range(2)]
    assert asked == [TINY, TINY]

    await neurons()
    answers = await asyncio.gather(*asking)

    assert [a.status_code for a in answers] == [200] * 10
    assert scheduler.asked.qsize() <= 2


async def test_what_the_scheduler_refuses_is_an_http_error(
    gateway: Running, scheduler: FakeScheduler
) -> None:
    scheduler.reply = NoRoomError("needs 9 GiB, 3 GiB are free at most")

    response = await gateway.chat(stream=True)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.json()["error"]["code"] == "no_room"
    assert "9 GiB" in response.json()["error"]["message"]


async def test_a_full_queue_turns_the_next_one_away(
    gateways: GatewayFactory, scheduler: FakeScheduler, neurons: NeuronFactory
) -> None:
    gateway = await gateways(max_waiting=1)
    first = asyncio.ensure_future(gateway.chat())
    await scheduler.asked.get()

    second = await gateway.chat()
    await neurons()

    assert second.status_code == 429
    assert second.json()["error"]["code"] == "busy"
    assert (await first).status_code == 200


async def test_a_wait_has_an_end(gateways: GatewayFactory) -> None:
    gateway = await gateways(wait_timeout_s=0.1)

    response = await gateway.chat()

    assert response.status_code == 503
    assert "was not ready in time" in response.json()["error"]["message"]


async def test_a_loaded_model_is_served_without_a_scheduler(
    gateway: Running, scheduler: FakeScheduler, neurons: NeuronFactory
) -> None:
    await neurons()
    await gateway.chat()
    num_asked = scheduler.asked.qsize()

    response = await gateway.chat()

    assert response.status_code == 200
    assert scheduler.asked.qsize() == num_asked
