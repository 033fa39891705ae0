"""Whatever goes wrong on the way, the client is told; no fault ever looks like a good end."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import openai
import pytest

from builders.gateway import HELLO, LIMIT_S, NeuronFactory, Running
from builders.peers import FakeNeuron, FakeScheduler, Served, say_hello
from conftest import NatsServer
from cortex_proto.errors import BusError, Failed
from cortex_proto.fleet import Ready
from cortex_proto.generation import Frame, TextDelta
from cortex_proto.ids import StreamId

Fault = Callable[[Served], Awaitable[None]]


async def drop_a_frame(served: Served) -> None:
    await served.say(TextDelta("a"))
    served.frame(TextDelta("lost"))
    await served.say(TextDelta("b"), served.end())


async def swap_two_frames(served: Served) -> None:
    await served.say(TextDelta("a"))
    first, second = served.frame(TextDelta("b")), served.frame(TextDelta("c"))
    await served.send(second, first)
    await served.say(served.end())


async def repeat_a_frame(served: Served) -> None:
    frame = served.frame(TextDelta("a"))
    await served.send(frame, frame)
    await served.say(served.end())


async def lose_the_tail(served: Served) -> None:
    await served.say(TextDelta("a"))
    served.frame(served.end())


async def change_the_text(served: Served) -> None:
    frame = served.frame(TextDelta("a"))
    await served.send(Frame(frame.stream, frame.seq, TextDelta("A")))
    await served.say(served.end())


async def fail(served: Served) -> None:
    await served.say(TextDelta("a"), Failed("engine_error", "the engine is on fire", retryable=False))


async def crash_without_a_word(served: Served) -> None:
    await served.say(TextDelta("a"))
    served.neuron.forget(served)


FAULTS = [
    (drop_a_frame, "stream_broken"),
    (swap_two_frames, "stream_broken"),
    (repeat_a_frame, "stream_broken"),
    (lose_the_tail, "stream_broken"),
    (change_the_text, "stream_broken"),
    (crash_without_a_word, "stream_broken"),
    (fail, "engine_error"),
]


def after_accepting(fault: Fault) -> Fault:
    async def answer(served: Served) -> None:
        await served.accept()
        await fault(served)

    return answer


def last_event(text: str) -> str:
    return text.rstrip().split("\n\n")[-1]


def error_code(text: str) -> str:
    event = msgspec.json.decode(last_event(text).removeprefix("data: "))
    return str(event["error"]["code"])


@pytest.mark.parametrize(("fault", "code"), FAULTS)
async def test_a_fault_ends_a_stream_with_an_error(
    gateway: Running, neurons: NeuronFactory, fault: Fault, code: str
) -> None:
    await neurons("a", after_accepting(fault))

    text = await gateway.streamed()

    assert '"content":"' in text
    assert error_code(text) == code
    assert "[DONE]" not in text
    assert '"finish_reason":"' not in text
    assert (await gateway.done()).outcome == code


@pytest.mark.parametrize(("fault", "code"), FAULTS)
async def test_a_fault_makes_a_whole_answer_an_http_error(
    gateway: Running, neurons: NeuronFactory, fault: Fault, code: str
) -> None:
    await neurons("a", after_accepting(fault))

    response = await gateway.chat()

    assert response.status_code >= 500
    assert response.json()["error"]["code"] == code


async def test_the_sdk_raises_when_a_stream_breaks(gateway: Running, neurons: NeuronFactory) -> None:
    await neurons("a", after_accepting(drop_a_frame))

    async with gateway.sdk() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        with pytest.raises(openai.APIError, match="part of the answer was lost"):
            async for _ in stream:
                pass


async def test_a_node_that_falls_silent_is_lost(gateway: Running, neurons: NeuronFactory) -> None:
    silent = asyncio.Event()

    async def fall_silent(served: Served) -> None:
        await served.accept()
        await served.say(TextDelta("a"))
        served.neuron.holds_leases = False
        await silent.wait()

    await neurons("a", fall_silent)

    assert error_code(await gateway.streamed()) == "node_lost"


async def test_a_node_that_leaves_the_bus_is_lost_at_once(gateway: Running, neurons: NeuronFactory) -> None:
    async def leave(served: Served) -> None:
        await served.accept()
        await served.say(TextDelta("a"))
        left.set_result(served.neuron)

    left: asyncio.Future[FakeNeuron] = asyncio.get_running_loop().create_future()
    await neurons("a", leave)

    async with gateway.stream() as response:
        await (await left).stop()
        text = (await response.aread()).decode()

    assert error_code(text) == "node_lost"
    assert "left the bus" in text


async def test_a_node_that_does_not_accept_is_told_to_stop_and_another_serves(
    gateway: Running, neurons: NeuronFactory
) -> None:
    async def say_nothing(served: Served) -> None:
        pass

    deaf = await neurons("a", say_nothing)
    await neurons("b")

    response = await gateway.chat()

    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    async with asyncio.timeout(LIMIT_S):
        assert await deaf.cancels.get() == (await deaf.requests.get()).stream
    done = await gateway.done()
    assert (done.node, done.attempts) == ("b", 2)


async def test_a_node_that_has_left_is_passed_over_without_waiting(
    gateway: Running, neurons: NeuronFactory
) -> None:
    gone = await neurons("a")
    await gone.stop()
    there = await neurons("b")

    response = await gateway.chat()

    assert response.status_code == 200
    assert (await there.requests.get()).stream.endswith("-1")


async def test_a_lone_node_that_has_left_is_waited_for(
    gateway: Running, scheduler: FakeScheduler, neurons: NeuronFactory
) -> None:
    neuron = await neurons()
    await gateway.chat()
    await neuron.stop()

    answering = asyncio.ensure_future(gateway.chat())
    await scheduler.asked.get()
    await neuron.start()

    assert (await answering).status_code == 200


async def test_a_busy_node_is_passed_over(gateway: Running, neurons: NeuronFactory) -> None:
    async def refuse(served: Served) -> None:
        await served.say(Failed("busy", "128 wait already", retryable=True))

    await neurons("a", refuse)
    await neurons("b")

    assert (await gateway.chat()).status_code == 200


async def test_when_all_are_busy_the_client_is_told_to_come_back(
    gateway: Running, neurons: NeuronFactory
) -> None:
    async def refuse(served: Served) -> None:
        await served.say(Failed("busy", "128 wait already", retryable=True))

    await neurons("a", refuse)
    await neurons("b", refuse)

    response = await gateway.chat(stream=True)

    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.json()["error"] == {
        "message": "128 wait already", "type": "rate_limit_error", "param": None, "code": "busy"
    }  # fmt: skip


async def test_a_prompt_that_is_too_long_is_a_400_also_for_a_stream(
    gateway: Running, neurons: NeuronFactory
) -> None:
    async def too_long(served: Served) -> None:
        await served.accept()
        message = "maximum context length is 2048 tokens, the prompt has 3000"
        await served.say(Failed("context_length_exceeded", message, retryable=False))

    await neurons("a", too_long)

    response = await gateway.chat(stream=True)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_frames_nobody_waits_for_are_answered_with_one_cancel(
    gateway: Running, neurons: NeuronFactory
) -> None:
    neuron = await neurons()
    await gateway.chat()
    instance = (await neuron.requests.get()).gateway
    stranger = StreamId("stranger-0")

    await neuron.send(instance, *(Frame(stranger, i, TextDelta("x")) for i in range(3)))
    await neuron.send(instance, Frame(stranger, 3, TextDelta("x")))
    await gateway.chat()  # its frames come behind those

    assert await neuron.cancels.get() == stranger
    assert neuron.cancels.empty()


async def test_a_bus_that_restarts_loses_no_frame_in_silence_and_then_serves_again(
    gateway: Running, neurons: NeuronFactory, nats_server: NatsServer
) -> None:
    neuron = await neurons("a", after_accepting(lose_the_tail))

    async with gateway.stream() as response:  # entered with the first token
        nats_server.restart()
        text = (await response.aread()).decode()
    neuron.answer = say_hello
    answering = asyncio.ensure_future(gateway.chat())
    while not answering.done():
        await report_ready(neuron)

    assert error_code(text) in ("stream_broken", "node_lost")
    assert (await answering).status_code == 200


async def report_ready(neuron: FakeNeuron) -> None:
    """Say it once more, as neurons do, whether or not the bus is there."""
    with suppress(BusError):
        await neuron.report(Ready(0, 0, max_waiting=8, idle_s=0, context=2048))
