"""A client that leaves ends its request, wherever that stands."""

import asyncio

from builders.gateway import LIMIT_S, NeuronFactory, Running
from builders.peers import TINY, FakeNeuron, FakeScheduler, Served
from cortex_proto.generation import TextDelta


async def hold(served: Served) -> None:
    await served.accept()
    await served.say(TextDelta("a"))


async def silent_prefill(served: Served) -> None:
    await served.accept()


async def stopped_stream(neuron: FakeNeuron) -> bool:
    """Wait for a cancel, and tell whether it is for the stream of the first request."""
    async with asyncio.timeout(LIMIT_S):
        return await neuron.cancels.get() == (await neuron.requests.get()).stream


async def test_leaving_a_stream_cancels_it(gateway: Running, neurons: NeuronFactory) -> None:
    neuron = await neurons("a", hold)

    async with gateway.stream() as response:
        await anext(response.aiter_lines())

    assert await stopped_stream(neuron)
    assert (await gateway.done()).outcome == "cancelled"


async def test_leaving_before_the_first_token_cancels_it(gateway: Running, neurons: NeuronFactory) -> None:
    neuron = await neurons("a", silent_prefill)
    asking = asyncio.ensure_future(gateway.streamed())
    generate = await neuron.requests.get()

    asking.cancel()

    async with asyncio.timeout(LIMIT_S):
        assert await neuron.cancels.get() == generate.stream
    assert (await gateway.done()).outcome == "cancelled"


async def test_leaving_a_whole_answer_cancels_it(gateway: Running, neurons: NeuronFactory) -> None:
    neuron = await neurons("a", hold)
    asking = asyncio.ensure_future(gateway.chat())
    generate = await neuron.requests.get()

    asking.cancel()

    async with asyncio.timeout(LIMIT_S):
        assert await neuron.cancels.get() == generate.stream
    assert (await gateway.done()).outcome == "cancelled"


async def test_leaving_while_the_model_loads_leaves_the_queue(
    gateway: Running, scheduler: FakeScheduler, neurons: NeuronFactory
) -> None:
    asking = asyncio.ensure_future(gateway.chat())
    await scheduler.asked.get()

    asking.cancel()
    done = await gateway.done()
    neuron = await neurons()

    assert (done.outcome, done.node, done.cold_start) == ("cancelled", None, True)
    assert neuron.requests.empty()


async def test_a_model_nobody_waits_for_any_more_is_asked_for_no_more(
    gateway: Running, scheduler: FakeScheduler
) -> None:
    asking = asyncio.ensure_future(gateway.chat())
    await scheduler.asked.get()
    assert asks_for_tiny()

    asking.cancel()

    async with asyncio.timeout(LIMIT_S):
        while asks_for_tiny():
            await gateway.http.get("/health")


def asks_for_tiny() -> bool:
    return any(task.get_name() == f"ask for {TINY}" for task in asyncio.all_tasks())
