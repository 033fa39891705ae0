"""Requests that go well, over plain HTTP and through the vendor's SDK."""

import asyncio
from typing import Any

import msgspec
import openai
import pytest

from builders.gateway import HELLO, NeuronFactory, Running
from builders.peers import TINY, Served
from cortex_proto.generation import Chat, ReasoningDelta, TextDelta, Tool, ToolCallDelta


async def echo(served: Served) -> None:
    """Answer with the words of the question."""
    prompt = served.generate.prompt
    assert isinstance(prompt, Chat)
    await served.accept()
    for word in prompt.turns[-1].content.split():
        await served.say(TextDelta(f"{word} "))
        await asyncio.sleep(0)  # let the others speak in between
    await served.say(served.end())


async def test_a_whole_answer(gateway: Running, neurons: NeuronFactory) -> None:
    await neurons()

    response = await gateway.chat()

    answer = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 8
    assert answer["id"] == f"chatcmpl-{response.headers['x-request-id']}"


async def test_a_stream_is_events_and_ends_with_done(gateway: Running, neurons: NeuronFactory) -> None:
    await neurons()

    async with gateway.stream() as response:
        text = (await response.aread()).decode()

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *events, done, nothing = text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    chunks = [msgspec.json.decode(e.removeprefix("data: ")) for e in events if not e.startswith(":")]
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "Hel", "lo", None]
    assert {(c["id"], c["created"], c["model"]) for c in chunks} == {
        (f"chatcmpl-{response.headers['x-request-id']}", chunks[0]["created"], TINY)
    }


async def test_the_sdk_reads_a_stream_with_usage(gateway: Running, neurons: NeuronFactory) -> None:
    await neurons()

    async with gateway.sdk() as client:
        stream = await client.chat.completions.create(
            **HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 5


async def test_the_sdk_gets_a_typed_error_for_an_unknown_model(gateway: Running) -> None:
    async with gateway.sdk() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(**{**HELLO, "model": "nope"})

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_sixteen_streams_at_a_time_do_not_mix(gateway: Running, neurons: NeuronFactory) -> None:
    await neurons("a", echo)
    await neurons("b", echo)
    questions = [" ".join(f"{i}-{j}" for j in range(50)) + " " for i in range(16)]

    async def ask(client: openai.AsyncOpenAI, question: str) -> str:
        messages: Any = [{"role": "user", "content": question}]
        stream = await client.chat.completions.create(model=TINY, messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with gateway.sdk() as client:
        answers = await asyncio.gather(*(ask(client, question) for question in questions))

    assert answers == questions


async def test_an_alias_is_served_by_its_model_and_answered_by_its_own_name(
    gateway: Running, neurons: NeuronFactory
) -> None:
    neuron = await neurons()

    answer = (await gateway.chat(model="little")).json()

    assert answer["model"] == "little"
    assert (await neuron.requests.get()).model == TINY


async def test_reasoning_reaches_the_client_under_both_names(
    gateway: Running, neurons: NeuronFactory
) -> None:
    async def think(served: Served) -> None:
        await served.accept()
        await served.say(ReasoningDelta("hm"), TextDelta("yes"))
        await served.say(served.end())

    await neurons("a", think)

    message = (await gateway.chat()).json()["choices"][0]["message"]

    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("yes", "hm", "hm")


async def test_the_sdk_reads_tool_calls_as_they_come(gateway: Running, neurons: NeuronFactory) -> None:
    async def call(served: Served) -> None:
        await served.accept()
        await served.say(ToolCallDelta(0, "", "call_1", "weather"))
        await served.say(ToolCallDelta(0, '{"city": '), ToolCallDelta(0, '"Ulm"}'))
        await served.say(served.end("tool_calls"))

    neuron = await neurons("a", call)
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]

    async with gateway.sdk() as client, client.chat.completions.stream(**HELLO, tools=tools) as stream:
        choice = (await stream.get_final_completion()).choices[0]

    prompt = (await neuron.requests.get()).prompt
    assert isinstance(prompt, Chat)
    assert prompt.tools == (Tool("weather", "", '{"type":"object"}'),)
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (made,) = choice.message.tool_calls
    assert (made.id, made.function.name, made.function.arguments) == ("call_1", "weather", '{"city": "Ulm"}')


async def test_ignored_fields_are_named_in_a_header(gateway: Running, neurons: NeuronFactory) -> None:
    await neurons()

    response = await gateway.chat(frobnicate=0.5, user="me")

    assert response.headers["x-cortex-ignored"] == "frobnicate"


async def test_each_request_leaves_one_record(gateway: Running, neurons: NeuronFactory) -> None:
    await neurons()

    response = await gateway.chat()
    done = await gateway.done()

    assert done.request == response.headers["x-request-id"]
    assert (done.model, done.node, done.outcome, done.attempts) == (TINY, "a", "stop", 1)
    assert (done.prompt_tokens, done.output_tokens) == (5, 3)
    assert done.ttft_s is not None
    assert gateway.records.empty()


async def test_the_less_busy_node_is_chosen(gateway: Running, neurons: NeuronFactory) -> None:
    held = asyncio.Event()

    async def hold(served: Served) -> None:
        await served.accept()
        await held.wait()
        await served.say(served.end())

    await neurons("a", hold)
    first = asyncio.ensure_future(gateway.chat())
    other = await neurons("b")

    while (await gateway.chat()).status_code == 200 and other.requests.empty():
        pass  # until the gateway has heard of node b
    held.set()

    assert (await first).status_code == 200
    assert not other.requests.empty()
