from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.dialects.openai_answer import Chunk, ChunkStream, whole
from cortex_proto.errors import EngineError, Failed
from cortex_proto.generation import (
    Accepted,
    Delta,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    Timing,
    ToolCallDelta,
    Usage,
)
from cortex_proto.ids import NodeId, RequestId


def finished(reason: FinishReason = "stop") -> Finished:
    usage = Usage(10, 4, cached_tokens=3, reasoning_tokens=2)
    return Finished(reason, usage, Timing(0, 0, 0), "digest")


def chunks(*deltas: Delta, include_usage: bool = True) -> list[Chunk]:
    stream = ChunkStream(RequestId("r"), "m", 7, include_usage=include_usage)
    return [chunk for delta in deltas for chunk in stream.feed(delta)]


def json(value: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def deltas_of(stream: list[Chunk]) -> list[Any]:
    return [choice["delta"] for chunk in stream for choice in json(chunk)["choices"]]


def test_an_accepted_request_has_nothing_to_say_yet() -> None:
    assert chunks(Accepted(NodeId("a"))) == []


def test_the_role_comes_first_and_once_and_the_reason_last() -> None:
    stream = chunks(TextDelta("a"), TextDelta("b"), finished(), include_usage=False)

    assert deltas_of(stream) == [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}]
    assert [json(c)["choices"][0]["finish_reason"] for c in stream] == [None, None, None, "stop"]


def test_without_include_usage_no_chunk_speaks_of_it() -> None:
    assert all("usage" not in json(c) for c in chunks(TextDelta("a"), finished(), include_usage=False))


def test_with_include_usage_it_comes_alone_at_the_end_and_is_null_before() -> None:
    *before, last = (json(c) for c in chunks(TextDelta("a"), finished()))

    assert [c["usage"] for c in before] == [None, None, None]
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


def test_every_chunk_has_the_same_head_and_all_keys() -> None:
    for chunk in chunks(TextDelta("a"), finished(), include_usage=False):
        written = json(chunk)
        assert (written["id"], written["created"], written["model"]) == ("chatcmpl-r", 7, "m")
        assert written["object"] == "chat.completion.chunk"
        assert set(written["choices"][0]) == {"index", "delta", "finish_reason", "logprobs"}


def test_reasoning_goes_under_both_names() -> None:
    assert deltas_of(chunks(ReasoningDelta("hm")))[1] == {"reasoning_content": "hm", "reasoning": "hm"}


def test_a_tool_call_says_its_id_and_name_once() -> None:
    stream = chunks(ToolCallDelta(0, "", "c", "f"), ToolCallDelta(0, '{"a"'), ToolCallDelta(0, ":1}"))

    assert [delta["tool_calls"][0] for delta in deltas_of(stream)[1:]] == [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]


def test_a_failure_cannot_be_taken_for_an_end() -> None:
    with pytest.raises(EngineError, match="out of luck"):
        chunks(TextDelta("a"), Failed("engine_error", "out of luck", retryable=False))


def test_a_whole_answer_of_calls_has_no_content() -> None:
    answer = json(whole(chunks(ToolCallDelta(0, "{}", "c", "f"), finished("tool_calls"))))

    [choice] = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }


def test_an_empty_answer_is_still_an_answer() -> None:
    answer = json(whole(chunks(finished("length"))))

    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_half_a_call_is_not_sold_as_a_whole_one(reason: FinishReason) -> None:
    pieces = (ToolCallDelta(0, "{}", "1", "f"), ToolCallDelta(1, '{"city": "Ul', "2", "f"))

    message = json(whole(chunks(*pieces, finished(reason))))["choices"][0]["message"]

    assert [call["id"] for call in message["tool_calls"]] == ["1"]


PIECES = st.one_of(
    st.builds(TextDelta, st.text(min_size=1)),
    st.builds(ReasoningDelta, st.text(min_size=1)),
    st.builds(ToolCallDelta, st.integers(0, 2), st.text(), st.none() | st.just("c"), st.just("f")),
)


@given(st.lists(PIECES))
def test_the_whole_answer_says_what_the_stream_said(pieces: list[Delta]) -> None:
    stream = chunks(*pieces, finished("tool_calls"))

    message = json(whole(stream))["choices"][0]["message"]

    said = deltas_of(stream)
    assert (message["content"] or "") == "".join(d.get("content", "") for d in said)
    assert message.get("reasoning", "") == "".join(d.get("reasoning", "") for d in said)
    assert "".join(c["function"]["arguments"] for c in message.get("tool_calls", [])) == "".join(
        call["function"]["arguments"]
        for index in range(3)
        for d in said
        for call in d.get("tool_calls", [])
        if call["index"] == index
    )
