from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.dialects.openai_chat import ChatRequest, read
from cortex_proto.errors import BadRequestError
from cortex_proto.generation import Chat, ChatTurn, Generate, JsonSchema, Limits, Sampling, Tool, ToolCall
from cortex_proto.ids import InstanceId, ModelId, RequestId, StreamId

HELLO = {"role": "user", "content": "hello"}


def body(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [HELLO], **fields})


def asked(raw: bytes) -> ChatRequest:
    return read(raw, RequestId("r"), InstanceId("gw"))


def turns(*messages: dict[str, Any]) -> tuple[ChatTurn, ...]:
    prompt = asked(body(messages=messages)).generate.prompt
    assert isinstance(prompt, Chat)
    return prompt.turns


def fault(raw: bytes) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        asked(raw)
    return caught.value


def test_a_plain_body_leaves_everything_else_to_the_model() -> None:
    assert asked(body()) == ChatRequest(
        Generate(
            RequestId("r"),
            StreamId("r-0"),
            InstanceId("gw"),
            ModelId("m"),
            Chat((ChatTurn("user", "hello"),)),
        ),
        stream=False,
        include_usage=False,
        ignored=(),
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, Sampling(temperature=0)),
        ({"temperature": 2, "top_p": 1}, Sampling(temperature=2, top_p=1)),
        ({"top_k": 40, "seed": -(2**63)}, Sampling(top_k=40, seed=-(2**63))),
        ({"top_k": -1}, Sampling(top_k=0)),
        ({"min_p": 0.1, "repetition_penalty": 1.5}, Sampling(min_p=0.1, repetition_penalty=1.5)),
        (
            {"presence_penalty": -2, "frequency_penalty": 2},
            Sampling(presence_penalty=-2, frequency_penalty=2),
        ),
        ({"logit_bias": {"7": -100, "50256": 0.5}}, Sampling(logit_bias=((7, -100), (50256, 0.5)))),
        ({"response_format": {"type": "text"}}, Sampling()),
        ({"response_format": {"type": "json_object"}}, Sampling(grammar=JsonSchema('{"type":"object"}'))),
        ({"response_format": {"type": "json_schema",
                              "json_schema": {"name": "x", "strict": True, "schema": {"b": 1, "a": [None]}}}},
         Sampling(grammar=JsonSchema('{"b":1,"a":[null]}'))),
        ({"logprobs": True}, Sampling(logprobs=0)),
        ({"logprobs": True, "top_logprobs": 20}, Sampling(logprobs=20)),
        ({"logprobs": False, "top_logprobs": None}, Sampling()),
        ({"temperature": None, "top_p": None, "top_k": None, "seed": None}, Sampling()),
    ],
)  # fmt: skip
def test_sampling(fields: dict[str, Any], expected: Sampling) -> None:
    assert asked(body(**fields)).generate.sampling == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 7}, Limits(7)),
        ({"max_tokens": 7, "max_completion_tokens": 5}, Limits(5)),
        ({"max_tokens": 7, "max_completion_tokens": None}, Limits(7)),
        ({"stop": "END"}, Limits(stop=("END",))),
        ({"stop": ["a", "b"]}, Limits(stop=("a", "b"))),
        ({"stop": []}, Limits()),
        ({"stop": None, "max_tokens": None}, Limits()),
        ({"ignore_eos": True}, Limits(ignore_eos=True)),
        ({"min_tokens": 3, "max_tokens": 3}, Limits(3, min_tokens=3)),
        ({"stop_token_ids": [0, 7]}, Limits(stop_token_ids=(0, 7))),
    ],
)
def test_limits(fields: dict[str, Any], expected: Limits) -> None:
    assert asked(body(**fields)).generate.limits == expected


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        ({"role": "developer", "content": "x"}, ChatTurn("system", "x")),
        ({"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
         ChatTurn("user", "a b")),
        ({"role": "assistant", "content": None}, ChatTurn("assistant")),
        ({"role": "assistant", "content": "x", "refusal": None, "audio": None, "reasoning_content": "y"},
         ChatTurn("assistant", "x", reasoning="y")),
        ({"role": "assistant", "content": "x", "reasoning": "y", "reasoning_content": None},
         ChatTurn("assistant", "x", reasoning="y")),
        ({"role": "assistant", "content": None,
          "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
         ChatTurn("assistant", "", (ToolCall("c", "f", ""),))),
        ({"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "42"}]},
         ChatTurn("tool", "42", tool_call_id="c")),
    ],
)  # fmt: skip
def test_messages(message: dict[str, Any], turn: ChatTurn) -> None:
    assert turns(message) == (turn,)


def chat(**fields: Any) -> Chat:
    prompt = asked(body(**fields)).generate.prompt
    assert isinstance(prompt, Chat)
    return prompt


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"function": {"name": "time.now", "description": "Tells it.", "parameters": None, "strict": None}}


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": None}])
def test_tools_are_offered_to_the_model(choice: dict[str, Any]) -> None:
    offered = chat(tools=[WEATHER, TIME], **choice)

    assert offered.tools == (Tool("weather", "", '{"type":"object"}'), Tool("time.now", "Tells it."))
    assert offered.parallel_tool_calls


def test_tools_that_may_not_be_called_are_not_offered() -> None:
    assert chat(tools=[WEATHER], tool_choice="none").tools == ()


def test_strictness_is_not_promised_in_silence() -> None:
    strict = {"type": "function", "function": {"name": "f", "strict": True}}

    assert asked(body(tools=[WEATHER, strict])).ignored == ("tools.strict",)
    assert asked(body(tools=[WEATHER, TIME])).ignored == ()


def test_one_call_at_most_may_be_asked_for() -> None:
    assert not chat(tools=[WEATHER], parallel_tool_calls=False).parallel_tool_calls


def test_options_go_to_the_template() -> None:
    assert (
        chat(chat_template_kwargs={"enable_thinking": False}).template_options == '{"enable_thinking":false}'
    )
    assert chat(chat_template_kwargs={}).template_options == ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ],
)
def test_tools_at_fault_are_named(fields: dict[str, Any], param: str) -> None:
    assert fault(body(**fields)).param == param


def test_stream_options_ask_for_usage() -> None:
    request = asked(body(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}))

    assert request.stream
    assert request.include_usage


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "chat_template_kwargs": {}},
        {"tools": [], "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"logprobs": False, "top_logprobs": None},
        {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"modalities": ["text"], "audio": None},
        {"user": "u", "metadata": {}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
    ],
)
def test_a_field_that_asks_for_nothing_passes_in_silence(fields: dict[str, Any]) -> None:
    assert asked(body(**fields)).ignored == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("functions", [{"name": "f"}]),
        ("web_search_options", {}),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(name: str, value: object) -> None:
    error = fault(body(**{name: value}))

    assert error.param == name
    assert name in str(error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [HELLO, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": "y"}}},
         "response_format.json_schema.schema"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"min_p": 1.1}, "min_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"logit_bias": {"7": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"seven": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 8, "max_tokens": 7}, "min_tokens"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids[0]"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
)  # fmt: skip
def test_a_field_at_fault_is_named(fields: dict[str, Any], param: str) -> None:
    assert fault(body(**fields)).param == param


def test_a_missing_field_is_named() -> None:
    assert fault(b'{"messages":[{"role":"user","content":"x"}]}').param == "model"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"model":"m","temperature":NaN}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","temperature":1e999}',
        b"[" * 100_000,
        b'{"model":' + b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    fault(raw)


@given(st.binary())
def test_any_bytes_are_a_bad_request_at_worst(raw: bytes) -> None:
    fault(raw)


def test_unknown_fields_pass_and_are_named() -> None:
    request = asked(body(length_penalty=0.1, guided_json={}, reasoning_effort="low", user="u"))

    assert request.ignored == ("guided_json", "length_penalty", "reasoning_effort")


def test_a_name_that_cannot_stand_in_a_header_is_left_out() -> None:
    request = asked(body(**{"x\r\nset-cookie: a": 1, "y" * 65: 1, "\u00e9": 1, "fine": 1}))

    assert request.ignored == ("fine",)
