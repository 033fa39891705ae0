"""What an OpenAI client reads does not change by accident.

The files in transcripts/ are the contract, byte for byte, as sent. To write those that are missing, run
this module as a script; change one that exists only on purpose.
"""

import math
import sys
from pathlib import Path

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from cortex_gateway import sse
from cortex_gateway.dialects.openai_answer import ChunkStream, whole
from cortex_proto.generation import (
    Accepted,
    Delta,
    Finished,
    Likely,
    Logprob,
    ReasoningDelta,
    TextDelta,
    Timing,
    ToolCallDelta,
    Usage,
)
from cortex_proto.ids import NodeId, RequestId

TRANSCRIPTS = Path(__file__).parent / "transcripts"
TIMING = Timing(0, 0, 0)

DELTAS: dict[str, tuple[Delta, ...]] = {
    "text": (
        Accepted(NodeId("a")),
        TextDelta("Gr\u00fc\u00dfe, "),
        TextDelta('\u4f60\u597d \U0001f600 "quoted"\n'),
        Finished("stop", Usage(12, 6, cached_tokens=4), TIMING, "digest", stop="END"),
    ),
    "logprobs": (
        TextDelta(
            "\u00fc",
            (
                Logprob(
                    Likely("\ufffd", (195,), -0.5),
                    (Likely("\ufffd", (195,), -0.5), Likely("u", (117,), -1.0)),
                ),
                Logprob(Likely("\ufffd", (188,), -0.125), (Likely("\ufffd", (188,), -0.125),)),
            ),
        ),
        TextDelta("x"),
        TextDelta("y", (Logprob(Likely("xy", (120, 121), -math.inf)),)),
        Finished("stop", Usage(3, 3), TIMING, "digest"),
    ),
    "cut": (TextDelta("once upon"), Finished("length", Usage(3, 2), TIMING, "digest")),
    "thinking": (
        ReasoningDelta("let me "),
        ReasoningDelta("see"),
        TextDelta("42"),
        Finished("stop", Usage(3, 5, reasoning_tokens=3), TIMING, "digest"),
    ),
    "tools": (
        TextDelta("looking it up"),
        ToolCallDelta(0, "", "call_1", "weather"),
        ToolCallDelta(0, '{"city":'),
        ToolCallDelta(0, '"Ulm"}'),
        ToolCallDelta(1, "{}", "call_2", "time"),
        Finished("tool_calls", Usage(30, 20), TIMING, "digest"),
    ),
    "calls-only": (
        ReasoningDelta("hm"),
        ToolCallDelta(0, "", "call_1", "weather"),
        ToolCallDelta(0, "{}"),
        Finished("tool_calls", Usage(30, 20, reasoning_tokens=2), TIMING, "digest"),
    ),
    "call-cut": (
        ToolCallDelta(0, "", "call_1", "time"),
        ToolCallDelta(0, "{}"),
        ToolCallDelta(1, "", "call_2", "weather"),
        ToolCallDelta(1, '{"city":'),
        Finished("length", Usage(30, 20), TIMING, "digest"),
    ),
}


def chunk_stream(*, include_usage: bool) -> ChunkStream:
    return ChunkStream(RequestId("0" * 32), "org/model", 1_700_000_000, include_usage=include_usage)


def streamed(name: str, *, include_usage: bool) -> bytes:
    stream = chunk_stream(include_usage=include_usage)
    chunks = [chunk for delta in DELTAS[name] for chunk in stream.feed(delta)]
    return b"".join(sse.frame(msgspec.json.encode(chunk)) for chunk in chunks) + sse.DONE


def answered(name: str) -> bytes:
    stream = chunk_stream(include_usage=True)
    return msgspec.json.encode(whole([chunk for delta in DELTAS[name] for chunk in stream.feed(delta)]))


def transcripts() -> dict[str, bytes]:
    texts = {f"{name}.sse": streamed(name, include_usage=False) for name in DELTAS}
    texts |= {f"{name}-usage.sse": streamed(name, include_usage=True) for name in DELTAS}
    return texts | {f"{name}.json": answered(name) for name in DELTAS}


@pytest.mark.parametrize("name", transcripts())
def test_the_bytes_are_those_of_the_transcript(name: str) -> None:
    assert transcripts()[name] == (TRANSCRIPTS / f"openai-chat-{name}").read_bytes()


@pytest.mark.parametrize("name", DELTAS)
def test_the_vendors_types_accept_every_event_and_answer(name: str) -> None:
    *events, done, nothing = streamed(name, include_usage=True).split(b"\n\n")

    assert (done, nothing) == (b"data: [DONE]", b"")
    for event in events:
        ChatCompletionChunk.model_validate_json(event.removeprefix(b"data: "), strict=True)
    ChatCompletion.model_validate_json(answered(name), strict=True)


def main() -> None:
    TRANSCRIPTS.mkdir(exist_ok=True)
    for name, text in transcripts().items():
        file = TRANSCRIPTS / f"openai-chat-{name}"
        if not file.exists():
            file.write_bytes(text)
            sys.stdout.write(f"{file.name}\n")


if __name__ == "__main__":
    main()
