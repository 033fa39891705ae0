"""A real gateway on a real bus, between a scripted scheduler and scripted neurons."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from builders.gateway import GatewayFactory, NeuronFactory, Running, running_gateway
from builders.peers import Answer, FakeNeuron, FakeScheduler, say_hello
from conftest import BusFactory


@pytest.fixture
async def scheduler(bus_factory: BusFactory) -> FakeScheduler:
    """A scheduler that has published its catalogue."""
    scheduler = FakeScheduler(await bus_factory("scheduler"))
    await scheduler.start()
    return scheduler


@pytest.fixture
async def neurons(bus_factory: BusFactory) -> AsyncIterator[NeuronFactory]:
    """`await neurons("a", answer)`: one more node, ready to serve."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(node: str = "a", answer: Answer = say_hello) -> FakeNeuron:
            neuron = FakeNeuron(await bus_factory("neuron"), node, answer)
            stack.push_async_callback(neuron.stop)
            await neuron.start()
            return neuron

        yield make


@pytest.fixture
async def unready_gateways(bus_factory: BusFactory, tmp_path: Path) -> AsyncIterator[GatewayFactory]:
    """`await unready_gateways(max_waiting=1)`: a gateway that may not know the catalogue yet."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**options: object) -> Running:
            bus = await bus_factory("gateway")
            return await stack.enter_async_context(running_gateway(bus, tmp_path, **options))

        yield make


@pytest.fixture
async def gateways(unready_gateways: GatewayFactory, scheduler: FakeScheduler) -> GatewayFactory:
    """`await gateways(max_waiting=1)`: a gateway that is ready."""

    async def make(**options: object) -> Running:
        gateway = await unready_gateways(**options)
        await gateway.ready()
        return gateway

    return make


@pytest.fixture
async def gateway(gateways: GatewayFactory) -> Running:
    """A gateway that is ready, with default settings."""
    return await gateways()
