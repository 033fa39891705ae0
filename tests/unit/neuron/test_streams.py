"""Streams: numbered frames, a matching digest, leases, deadlines, and memory of the dead."""

import msgspec
import pytest

from builders.pieces import said
from builders.tokenizers import byte_tokenizer
from cortex_neuron.engine.messages import Ended, EndReason
from cortex_neuron.streams import Limits, Stream, Streams
from cortex_neuron.text.answer import Answer
from cortex_neuron.text.detokenizer import Detokenizer
from cortex_neuron.text.tokenizer import codec
from cortex_proto.errors import Failed
from cortex_proto.generation import (
    Accepted,
    Chat,
    Delta,
    Finished,
    FinishReason,
    Frame,
    Generate,
    Lease,
    LeaseHeld,
    Prompt,
    Text,
    TextDelta,
    Timing,
    Tool,
    Usage,
)
from cortex_proto.ids import InstanceId, ModelId, NodeId, RequestId, StreamId
from cortex_proto.stream import Checking

TOKENIZER = byte_tokenizer()
G1, G2, M = InstanceId("g1"), InstanceId("g2"), ModelId("m")
CALL = '<tool_call>{"name": "f", "arguments": {"city": "Ulm"}}</tool_call>'
LIMITS = Limits(lease_s=15, remembered_s=30)


def generate(name: str = "s", gateway: InstanceId = G1, budget_ms: int = 60_000) -> Generate:
    return Generate(RequestId("r"), StreamId(name), gateway, M, Text("x"), budget_ms=budget_ms)


def begun(*stops: str) -> Stream:
    stream = Stream(generate(), now_s=10.0)
    stream.begin(Answer(Detokenizer(TOKENIZER, []), stops), now_s=10.5)
    return stream


def thinking(prompt: Prompt) -> Stream:
    stream = Stream(generate(), now_s=10.0)
    codec_ = codec(TOKENIZER, {"default": "<think>{{ tools }}<tool_call>"})
    stream.begin(codec_.answer(msgspec.structs.replace(generate(), prompt=prompt), []), now_s=10.5)
    return stream


def ended(reason: EndReason = "stop") -> Ended:
    return Ended(StreamId("s"), reason, 5, 9, queue_s=1.0, prefill_s=2.0, decode_s=3.0, cached_tokens=4)


def opened(streams: Streams, generate: Generate, now_s: float = 0.0) -> Stream:
    stream = streams.open(generate, now_s)
    assert stream is not None
    return stream


def received(*frames: Frame) -> list[Delta]:
    checking = Checking()
    return [checking.take(frame) for frame in frames]


def test_a_whole_answer_passes_the_gateways_check() -> None:
    stream = begun()
    tokens = TOKENIZER.encode("the cat").ids

    frames = [stream.accept(NodeId("n"))]
    frames += [frame for token in tokens for frame in stream.sampled([token])]
    frames += stream.finished(ended("length"))

    first, *text, last = received(*frames)
    assert first == Accepted(NodeId("n"))
    assert "".join(delta.text for delta in text if isinstance(delta, TextDelta)) == "the cat"
    assert isinstance(last, Finished)
    assert (last.reason, last.stop) == ("length", None)
    assert last.usage == Usage(5, 9, cached_tokens=4)
    assert last.timing == Timing(1.5, 2.0, 3.0)
    assert stream.sent == len(frames)


def test_a_stop_string_ends_the_text_and_counts_the_tokens_up_to_it() -> None:
    stream = begun("cat")
    tokens = TOKENIZER.encode("the cat sat").ids

    frames = list(stream.sampled(tokens))
    assert stream.is_stopped
    assert stream.sampled(TOKENIZER.encode("more").ids) == ()
    frames += stream.finished(ended("cancelled"))

    text, last = received(*frames)
    assert text == TextDelta("the ")
    assert isinstance(last, Finished)
    assert (last.reason, last.stop) == ("stop", "cat")
    assert last.usage.output_tokens == len(tokens)


def test_thoughts_and_calls_are_frames_of_their_own_and_pass_the_gateways_check() -> None:
    stream = thinking(Chat((), tools=(Tool("f"),)))
    tokens = TOKENIZER.encode(f"<think>hm</think>ok{CALL}").ids

    frames = [frame for token in tokens for frame in stream.sampled([token])]
    *deltas, last = received(*frames, *stream.finished(ended("stop")))

    assert [kind for kind, *_ in said(deltas)] == ["thought", "text", "call"]
    assert isinstance(last, Finished)
    assert last.reason == "tool_calls"
    assert last.usage.reasoning_tokens == len(TOKENIZER.encode("hm</think>").ids)


@pytest.mark.parametrize(
    ("text", "why", "reason"),
    [
        (CALL, "stop", "tool_calls"),
        (CALL, "length", "length"),
        (CALL.partition("}")[0], "length", "length"),
        (CALL.partition("}")[0], "stop", "stop"),
        ("<tool_call>no call</tool_call>", "stop", "stop"),
    ],
)
def test_only_whole_calls_of_a_whole_answer_are_a_reason_to_end(
    text: str, why: EndReason, reason: FinishReason
) -> None:
    stream = thinking(Chat((), tools=(Tool("f"),)))

    stream.sampled(TOKENIZER.encode(text).ids)
    last = stream.finished(ended(why))[-1].delta

    assert isinstance(last, Finished)
    assert last.reason == reason


def test_the_engine_may_stop_after_the_only_call_that_is_allowed() -> None:
    stream = thinking(Chat((), tools=(Tool("f"),), parallel_tool_calls=False))
    num_first = len(TOKENIZER.encode(CALL).ids)
    tokens = iter(TOKENIZER.encode(CALL + CALL).ids)

    num_taken = 0
    while not stream.is_stopped:
        stream.sampled([next(tokens)])
        num_taken += 1
    last = stream.finished(ended("cancelled"))[-1].delta

    assert isinstance(last, Finished)
    assert (last.reason, last.usage.output_tokens) == ("tool_calls", num_taken)
    assert num_taken < num_first


def test_text_held_back_comes_out_at_the_end() -> None:
    stream = begun("cat!")

    frames = [*stream.sampled(TOKENIZER.encode("the cat").ids), *stream.finished(ended())]

    assert received(*frames)[:-1] == [TextDelta("the "), TextDelta("cat")]


def test_a_failure_is_a_numbered_frame_too() -> None:
    stream = begun()
    stream.accept(NodeId("n"))

    assert stream.failed(Failed("x", "y", retryable=False)).seq == 1


def test_a_repeated_request_is_taken_once() -> None:
    streams = Streams(LIMITS)
    opened(streams, generate())

    assert streams.open(generate(), 1.0) is None
    assert streams.num_live == {M: 1}


def test_a_stream_that_no_lease_names_is_unwanted() -> None:
    streams = Streams(LIMITS)
    kept, left = opened(streams, generate("kept")), opened(streams, generate("left"))

    streams.lease(Lease(G1, (kept.id,)), 10.0)

    assert streams.unwanted(15.0) == ()
    assert streams.unwanted(15.1) == (left,)


def test_a_lease_tells_how_many_frames_there_are_also_of_the_dead() -> None:
    streams = Streams(LIMITS)
    stream = opened(streams, generate())
    stream.accept(NodeId("n"))
    streams.end(stream, 1.0)

    assert streams.lease(Lease(G1, (stream.id, StreamId("unknown"))), 2.0) == LeaseHeld({stream.id: 1})


def test_a_lease_does_not_reach_another_gateways_streams() -> None:
    streams = Streams(LIMITS)
    stream = opened(streams, generate(gateway=G2))

    assert streams.lease(Lease(G1, (stream.id,)), 2.0) == LeaseHeld({})


def test_what_ended_is_remembered_for_a_while() -> None:
    streams = Streams(LIMITS)
    stream = opened(streams, generate())
    streams.end(stream, 1.0)

    streams.forget(31.0)
    assert streams.lease(Lease(G1, (stream.id,)), 31.0).sent
    streams.forget(31.1)
    assert not streams.lease(Lease(G1, (stream.id,)), 31.1).sent


def test_a_stream_is_overdue_when_its_budget_is_spent() -> None:
    streams = Streams(LIMITS)
    stream = opened(streams, generate(budget_ms=2000))

    assert streams.overdue(2.0) == ()
    assert streams.overdue(2.1) == (stream,)


def test_what_ended_is_neither_live_nor_counted_nor_reaped() -> None:
    streams = Streams(LIMITS)
    stream = opened(streams, generate())

    streams.end(stream, 1.0)

    assert streams.live(stream.id) is None
    assert streams.num_live == {}
    assert streams.of(M) == streams.unwanted(1000.0) == streams.overdue(1000.0) == ()
