"""OpenAI chat, inwards: a request body becomes one `Generate`, or a 400 that names the field at fault.

A field of the dialect is honoured, or harmless to leave aside, or refused by name unless it asks for
nothing; any other field passes and is reported as ignored.
Source: the OpenAI API description (chat completions, create).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from cortex_gateway.dialects.openai_tools import FunctionTool, ToolChoice, json_text, offered
from cortex_proto.errors import BadRequestError
from cortex_proto.generation import (
    Chat,
    ChatTurn,
    Generate,
    Grammar,
    JsonSchema,
    Limits,
    Role,
    Sampling,
    ToolCall,
)
from cortex_proto.ids import InstanceId, ModelId, RequestId, stream_id

_MAX_COUNT = 2**31
_MAX_NAMED = 32
_MAX_BIASED = 1024

T = TypeVar("T")
Count = Annotated[int, Meta(ge=1, le=_MAX_COUNT)]
StopString = Annotated[str, Meta(min_length=1)]
TokenId = Annotated[int, Meta(ge=0, le=_MAX_COUNT)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class Part(msgspec.Struct, frozen=True):
    """One part of a message; only text is understood."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """What the assistant called in an earlier turn."""

    name: str
    arguments: str


class PastToolCall(msgspec.Struct, frozen=True):
    """A tool call in an earlier turn."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[Part, ...] | None = None
    tool_calls: tuple[PastToolCall, ...] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The same under the other name that is in use."""


class StreamOptions(msgspec.Struct, frozen=True):
    """How to stream."""

    include_usage: bool | None = None


class NamedSchema(msgspec.Struct, frozen=True):
    """A JSON schema; `strict` or not, it binds."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class ChatBody(msgspec.Struct, frozen=True):
    """The body of `POST /v1/chat/completions`; null means absent."""

    model: str
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_MAX_COUNT)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[tuple[StopString, ...], Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=_MAX_BIASED)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=_MAX_COUNT)] | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=128)] | None = None
    ignore_eos: bool | None = None
    tools: tuple[FunctionTool, ...] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """What one body asks for."""

    generate: Generate
    """Its model is the name that the client wrote."""
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]
    """Fields that have no effect and were not refused."""


_HARMLESS = frozenset(
    (
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    )
)
"""They change no word of the answer."""

_NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "moderation": (),
}
"""Fields of the dialect that are not honoured yet, and the values of each that ask for nothing."""


def read(raw: bytes, request: RequestId, gateway: InstanceId) -> ChatRequest:
    """Read a body.

    Raises:
        BadRequestError: no JSON, a mistyped or missing field, a value out of range, something not supported.
    """
    fields = _fields(raw)
    body = _convert(fields, ChatBody)
    for name, asking_nothing in _NOT_YET.items():
        if fields.get(name) not in (None, *asking_nothing):
            raise BadRequestError(f"{name!r} is not supported with this value", name)
    if body.stream_options is not None and not body.stream:
        raise BadRequestError("stream_options goes with stream = true", "stream_options")
    if body.min_tokens and body.min_tokens > (_max_tokens(body) or _MAX_COUNT):
        raise BadRequestError("'min_tokens' is more than the limit of tokens", "min_tokens")
    if body.top_logprobs and not body.logprobs:
        raise BadRequestError("top_logprobs goes with logprobs = true", "top_logprobs")
    return ChatRequest(
        _generate(body, request, gateway),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        ignored=(*_ignored(fields), *(("tools.strict",) if _asks_strictness(body) else ())),
    )


def _fields(raw: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is no JSON: {error}") from error
    except RecursionError as error:
        raise BadRequestError("the body is nested too deeply") from error
    if not isinstance(fields, dict):
        raise BadRequestError("the body must be a JSON object")
    return fields


_MISSING = re.compile(r"missing required field `(\w+)`")
_WHERE = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")


def _convert(fields: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        reason = str(error)
        missing, where = _MISSING.search(reason), _WHERE.search(reason)
        path = [where[1]] if where and where[1] else []
        param = ".".join(path + ([missing[1]] if missing else []))
        raise BadRequestError(f"{param!r}: {_WHERE.sub('', reason)}", param) from error


def _ignored(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the fields that had no effect; what cannot stand in a header is left out."""
    known = {*ChatBody.__struct_fields__, *_HARMLESS, *_NOT_YET}
    unknown = (
        name for name in sorted(fields.keys() - known) if re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII)
    )
    return tuple(unknown)[:_MAX_NAMED]


def _asks_strictness(body: ChatBody) -> bool:
    return any(tool.function.strict for tool in body.tools or ())


def _generate(body: ChatBody, request: RequestId, gateway: InstanceId) -> Generate:
    return Generate(
        request,
        stream_id(request, 0),
        gateway,
        ModelId(body.model),
        _chat(body),
        _sampling(body),
        _limits(body),
    )


def _chat(body: ChatBody) -> Chat:
    return Chat(
        tuple(_turn(message, f"messages[{i}]") for i, message in enumerate(body.messages)),
        tools=offered(body.tools or (), body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_options=json_text(body.chat_template_kwargs or None),
    )


def _sampling(body: ChatBody) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        seed=body.seed,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=tuple((body.logit_bias or {}).items()),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=None if body.response_format is None else _grammar(body.response_format),
    )


def _grammar(asked: ResponseFormat) -> Grammar | None:
    match asked.type:
        case "text":
            return None
        case "json_object":
            return JsonSchema('{"type":"object"}')
        case "json_schema":
            if asked.json_schema is None:
                raise BadRequestError("json_schema is missing", "response_format.json_schema")
            return JsonSchema(msgspec.json.encode(asked.json_schema.schema).decode())


def _limits(body: ChatBody) -> Limits:
    return Limits(
        max_tokens=_max_tokens(body),
        stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
        stop_token_ids=body.stop_token_ids or (),
    )


def _max_tokens(body: ChatBody) -> int | None:
    return body.max_completion_tokens or body.max_tokens


def _turn(message: ChatMessage, where: str) -> ChatTurn:
    if message.content is None and message.role != "assistant":
        raise BadRequestError(f"a {message.role} message needs content", f"{where}.content")
    if message.role == "tool" and not message.tool_call_id:
        raise BadRequestError("a tool message needs the id of its call", f"{where}.tool_call_id")
    role: Role = "system" if message.role == "developer" else message.role
    calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in message.tool_calls or ())
    return ChatTurn(
        role,
        _text(message.content, f"{where}.content"),
        calls,
        message.tool_call_id,
        message.reasoning_content or message.reasoning or "",
    )


def _text(content: str | tuple[Part, ...] | None, where: str) -> str:
    """Join the parts as if they had come as one string."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part_text(part: Part, where: str) -> str:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if text is None:
        raise BadRequestError(f"a part of type {part.type!r} is not supported here, only text is", where)
    return text
