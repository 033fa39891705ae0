"""Requests against a loaded model, over the bus."""

import asyncio
import json
from typing import Any

from builders.neuron import CONTEXT, NODE, Gateway, MakeGateway, Start, Watch
from cortex_neuron.streams import Limits
from cortex_proto.errors import BadRequestError, ContextLengthError, Failed, UnavailableError
from cortex_proto.fleet import Ready
from cortex_proto.generation import (
    Accepted,
    Chat,
    ChatTurn,
    Finished,
    JsonSchema,
    ReasoningDelta,
    Sampling,
    Text,
    TextDelta,
    Tool,
)
from cortex_proto.generation import Limits as StopLimits
from cortex_proto.ids import ModelId

TINY = ModelId("tiny")
SHORT = StopLimits(max_tokens=12, ignore_eos=True)
ENDLESS = StopLimits(ignore_eos=True)


async def ready(start: Start, limits: Limits | None = None) -> Watch:
    watch = await start(limits)
    await watch.want(watch.model())
    await watch.until(Ready)
    return watch


async def said(gateway: Gateway, **fields: Any) -> tuple[str, Finished]:
    """Generate, and return the whole text and how it ended."""
    stream = await gateway.generate(TINY, **fields)
    first, *pieces, last = await gateway.deltas_of(stream, until=Finished)
    assert first == Accepted(NODE)
    assert isinstance(last, Finished)
    return "".join(p.text for p in pieces if isinstance(p, TextDelta)), last


async def test_an_answer_comes_whole_and_in_order(start: Start, make_gateway: MakeGateway) -> None:
    await ready(start)
    gateway = await make_gateway()

    text, last = await said(gateway, limits=SHORT)

    assert text
    assert (last.reason, last.stop) == ("length", None)
    assert last.usage.output_tokens == 12
    assert last.usage.prompt_tokens > 0

    stop = text[len(text) // 2 :]
    cut, stopped = await said(gateway, limits=StopLimits(max_tokens=12, ignore_eos=True, stop=(stop,)))
    assert cut == text[: text.index(stop)]
    assert (stopped.reason, stopped.stop) == ("stop", stop)

    chat = Chat((ChatTurn("user", "the cat"),))
    _, rendered = await said(gateway, prompt=chat, limits=SHORT)
    assert rendered.usage.prompt_tokens > last.usage.prompt_tokens

    any_text, _ = await said(gateway, to=None, limits=SHORT)
    assert any_text == text


async def test_thoughts_and_tools_go_with_the_template(start: Start, make_gateway: MakeGateway) -> None:
    await ready(start)
    gateway = await make_gateway()
    turns = (ChatTurn("user", "the cat"),)
    plain, usual = await said(gateway, prompt=Chat(turns), limits=SHORT)

    thinking = Chat(turns, template_options='{"enable_thinking": true}')
    stream = await gateway.generate(TINY, prompt=thinking, limits=SHORT)
    _, *thoughts, last = await gateway.deltas_of(stream, until=Finished)
    _, with_tool = await said(gateway, prompt=Chat(turns, tools=(Tool("weather"),)), limits=SHORT)

    assert plain
    assert usual.usage.reasoning_tokens == 0
    assert thoughts
    assert all(isinstance(delta, ReasoningDelta) for delta in thoughts)
    assert isinstance(last, Finished)
    assert (last.reason, last.usage.reasoning_tokens) == ("length", 12)
    assert with_tool.usage.prompt_tokens > usual.usage.prompt_tokens


async def test_logprobs_are_told_of_the_whole_text(start: Start, make_gateway: MakeGateway) -> None:
    await ready(start)
    gateway = await make_gateway()

    stream = await gateway.generate(TINY, sampling=Sampling(temperature=0, logprobs=2), limits=SHORT)
    pieces = [d for d in await gateway.deltas_of(stream, until=Finished) if isinstance(d, TextDelta)]

    told = [one for piece in pieces for one in piece.logprobs]
    assert len(told) == 12
    assert b"".join(bytes(one.chosen.bytes) for one in told).decode() == "".join(p.text for p in pieces)
    assert all(one.top[0].logprob == one.chosen.logprob > one.top[1].logprob for one in told)


async def test_an_answer_is_bound_to_its_schema(start: Start, make_gateway: MakeGateway) -> None:
    await ready(start)
    gateway = await make_gateway()
    properties = {"a": {"enum": [1, 22]}}
    schema = {"type": "object", "properties": properties, "required": ["a"], "additionalProperties": False}

    text, last = await said(gateway, sampling=Sampling(temperature=1, grammar=JsonSchema(json.dumps(schema))))

    assert json.loads(text)["a"] in (1, 22)
    assert last.reason == "stop"


async def test_two_gateways_get_their_own_frames(start: Start, make_gateway: MakeGateway) -> None:
    await ready(start)
    gateways = [await make_gateway() for _ in range(2)]

    answers = await asyncio.gather(*(said(g, limits=SHORT) for g in gateways for _ in range(4)))

    assert len({text for text, _ in answers}) == 1
    assert [len(g.deltas) for g in gateways] == [4, 4]


async def test_what_cannot_be_served_fails_at_once(start: Start, make_gateway: MakeGateway) -> None:
    await ready(start)
    gateway = await make_gateway()

    async def failure(**fields: Any) -> Failed:
        stream = await gateway.generate(**({"model": TINY} | fields))
        failed = (await gateway.deltas_of(stream, until=Failed))[-1]
        assert isinstance(failed, Failed)
        return failed

    elsewhere = await failure(model=ModelId("other"))
    assert (elsewhere.code, elsewhere.retryable) == (UnavailableError.code, True)
    assert elsewhere.message == "model 'other' is not loaded on node test-node, or is leaving"
    too_long = await failure(prompt=Text("cat " * CONTEXT))
    assert too_long.code == ContextLengthError.code
    assert f"maximum context length is {CONTEXT} tokens" in too_long.message
    tool = await failure(prompt=Chat((ChatTurn("tool", "42"),)))
    assert tool.code == BadRequestError.code
    options = await failure(prompt=Chat((ChatTurn("user", "hi"),), template_options='{"tools": []}'))
    assert options.code == BadRequestError.code
    late = await failure(budget_ms=0, limits=ENDLESS)
    assert (late.message, late.retryable) == ("the time of the request was up", False)


async def test_a_cancelled_stream_frees_its_place(start: Start, make_gateway: MakeGateway) -> None:
    watch = await ready(start)
    gateway = await make_gateway()
    stream = await gateway.generate(TINY, limits=ENDLESS)
    await gateway.deltas_of(stream, until=TextDelta)

    await gateway.cancel(stream)
    held = await gateway.lease(stream)

    assert held.sent == {stream: len(gateway.deltas[stream])}
    report = await watch.until(Ready)
    assert isinstance(report.state, Ready)
    assert (report.state.running, report.state.waiting) == (0, 0)
    assert (await gateway.lease(stream)).sent == held.sent


async def test_a_lease_counts_the_frames_sent_before_it(start: Start, make_gateway: MakeGateway) -> None:
    await ready(start)
    gateway = await make_gateway()
    stream = await gateway.generate(TINY, limits=ENDLESS)
    await gateway.deltas_of(stream, until=TextDelta)

    held = await gateway.lease(stream)

    assert 0 < held.sent[stream] <= len(gateway.deltas[stream])
    await gateway.cancel(stream)


async def test_a_stream_whose_gateway_is_gone_is_reaped(start: Start, make_gateway: MakeGateway) -> None:
    await ready(start, Limits(lease_s=0.2))
    gateway = await make_gateway()
    stream = await gateway.generate(TINY, limits=ENDLESS)

    deltas = await gateway.deltas_of(stream, until=Failed)

    assert deltas[-1] == Failed(UnavailableError.code, "its gateway asked for it no more", retryable=False)
