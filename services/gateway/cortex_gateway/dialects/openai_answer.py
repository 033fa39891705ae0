"""OpenAI chat, outwards: deltas become chunks, and the chunks of one stream fold into a whole answer.

Source: the OpenAI API description (chat completion object and chunk object).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, assert_never

import msgspec
from msgspec import UNSET, UnsetType

from cortex_proto import generation
from cortex_proto.errors import Failed, from_wire
from cortex_proto.generation import (
    Accepted,
    Delta,
    Finished,
    FinishReason,
    Logprob,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from cortex_proto.ids import RequestId

_LEAST_LOGPROB = -9999.0
"""Stands for what JSON cannot say, the logarithm of nothing."""


class CachedTokens(msgspec.Struct, frozen=True):
    """Part of the prompt tokens."""

    cached_tokens: int


class ReasoningTokens(msgspec.Struct, frozen=True):
    """Part of the completion tokens."""

    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class FunctionPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a call: the name comes once, the arguments bit by bit."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the tool call number `index`; id and type come once."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionPiece


class ChunkDelta(msgspec.Struct, frozen=True):
    """What is new in a chunk. Reasoning goes under both names that clients look for."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[ToolCallPiece, ...] | UnsetType = UNSET


class TopLogprob(msgspec.Struct, frozen=True):
    """A token, and how likely it was."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer, and what was likely in its place."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopLogprob, ...]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """Of the tokens of a choice or a chunk."""

    content: tuple[TokenLogprob, ...]
    refusal: None = None


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one choice of a chunk."""

    index: int = 0
    delta: ChunkDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET


class WholeFunction(msgspec.Struct, frozen=True):
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str


class WholeToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call of a whole answer."""

    id: str
    type: Literal["function"] = "function"
    function: WholeFunction


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[WholeToolCall, ...] | UnsetType = UNSET


class AnswerChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one choice of a whole answer."""

    index: int = 0
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[AnswerChoice, ...]
    usage: Usage | UnsetType | None = UNSET


class ChunkStream:
    """Turns one generation into chunks: feed it deltas, send what it yields."""

    def __init__(self, request: RequestId, model: str, created_s: int, *, include_usage: bool) -> None:
        self._id = f"chatcmpl-{request}"
        self._model = model
        self._created_s = created_s
        self._include_usage = include_usage
        self._begun = False

    def feed(self, delta: Delta) -> Iterator[Chunk]:
        """Yield the chunks due because of `delta`.

        Raises:
            CortexError: the delta says that the generation failed.
        """
        match delta:
            case Accepted():
                return
            case Failed():
                raise from_wire(delta)
            case TextDelta(text=text, logprobs=logprobs):
                yield from self._piece(ChunkDelta(content=text), logprobs=_logprobs(logprobs))
            case ReasoningDelta(text=text):
                yield from self._piece(ChunkDelta(reasoning_content=text, reasoning=text))
            case ToolCallDelta():
                yield from self._piece(ChunkDelta(tool_calls=(_tool_call_piece(delta),)))
            case Finished(reason=reason, usage=usage):
                yield from self._piece(ChunkDelta(), reason)
                if self._include_usage:
                    yield self._chunk((), _usage(usage))
            case never:
                assert_never(never)

    def _piece(
        self,
        delta: ChunkDelta,
        reason: FinishReason | None = None,
        logprobs: ChoiceLogprobs | None = None,
    ) -> Iterator[Chunk]:
        usage = None if self._include_usage else UNSET
        if not self._begun:
            self._begun = True
            yield self._chunk((ChunkChoice(delta=ChunkDelta(role="assistant", content="")),), usage)
        yield self._chunk((ChunkChoice(delta=delta, logprobs=logprobs, finish_reason=reason),), usage)

    def _chunk(self, choices: tuple[ChunkChoice, ...], usage: Usage | UnsetType | None) -> Chunk:
        return Chunk(id=self._id, created=self._created_s, model=self._model, choices=choices, usage=usage)


def whole(chunks: Sequence[Chunk]) -> Completion:
    """Fold all chunks of one stream, usage included, into the answer that is not streamed."""
    choices = [choice for chunk in chunks for choice in chunk.choices]
    deltas = [choice.delta for choice in choices]
    reason = choices[-1].finish_reason
    calls = _tool_calls(piece for delta in deltas for piece in delta.tool_calls or ())
    if reason != "tool_calls":  # the answer was cut off, maybe inside a call: half a call is none
        calls = tuple(call for call in calls if _is_json(call.function.arguments))
    text = "".join(delta.content or "" for delta in deltas)
    thoughts = "".join(delta.reasoning or "" for delta in deltas) or UNSET
    message = AnswerMessage(
        content=text or (None if calls else ""),
        reasoning_content=thoughts,
        reasoning=thoughts,
        tool_calls=calls or UNSET,
    )
    told = tuple(token for choice in choices if choice.logprobs for token in choice.logprobs.content)
    logprobs = ChoiceLogprobs(told) if told else None
    choice = AnswerChoice(message=message, logprobs=logprobs, finish_reason=reason)
    last = chunks[-1]
    return Completion(id=last.id, created=last.created, model=last.model, choices=(choice,), usage=last.usage)


def _logprobs(told: Sequence[Logprob]) -> ChoiceLogprobs | None:
    content = tuple(
        TokenLogprob(
            chosen.token,
            max(chosen.logprob, _LEAST_LOGPROB),
            chosen.bytes,
            tuple(TopLogprob(t.token, max(t.logprob, _LEAST_LOGPROB), t.bytes) for t in one.top),
        )
        for one in told
        for chosen in (one.chosen,)
    )
    return ChoiceLogprobs(content) if content else None


def _tool_call_piece(delta: ToolCallDelta) -> ToolCallPiece:
    if delta.id is None:
        return ToolCallPiece(index=delta.index, function=FunctionPiece(arguments=delta.arguments))
    function = FunctionPiece(name=delta.name or "", arguments=delta.arguments)
    return ToolCallPiece(index=delta.index, id=delta.id, type="function", function=function)


def _tool_calls(pieces: Iterable[ToolCallPiece]) -> tuple[WholeToolCall, ...]:
    calls: dict[int, list[ToolCallPiece]] = {}
    for piece in pieces:
        calls.setdefault(piece.index, []).append(piece)
    return tuple(_whole_call(calls[index]) for index in sorted(calls))


def _whole_call(pieces: Sequence[ToolCallPiece]) -> WholeToolCall:
    first = pieces[0]
    arguments = "".join(piece.function.arguments for piece in pieces)
    return WholeToolCall(id=first.id or "", function=WholeFunction(first.function.name or "", arguments))


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _usage(usage: generation.Usage) -> Usage:
    return Usage(
        usage.prompt_tokens,
        usage.output_tokens,
        usage.prompt_tokens + usage.output_tokens,
        CachedTokens(usage.cached_tokens),
        ReasoningTokens(usage.reasoning_tokens),
    )
