"""OpenAI chat, outwards: deltas become chunks, and the chunks of one stream fold into a whole answer.

Source: the OpenAI API description (chat completion object and chunk object).
"""

from collections.abc import Iterable, Iterator
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
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from cortex_proto.ids import RequestId


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


class FunctionPiece(msgspec.Struct, frozen=True):
    """A piece of a call: the name comes once, the arguments bit by bit."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallPiece(msgspec.Struct, frozen=True):
    """A piece of the tool call number `index`; id and type come once."""

    index: int
    function: FunctionPiece
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChunkDelta(msgspec.Struct, frozen=True):
    """What is new in a chunk. Reasoning goes under both names that clients look for."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[ToolCallPiece, ...] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """The one choice of a chunk."""

    delta: ChunkDelta
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: None = None


class Chunk(msgspec.Struct, frozen=True):
    """One event of a streamed answer."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | None | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class WholeFunction(msgspec.Struct, frozen=True):
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str


class WholeToolCall(msgspec.Struct, frozen=True):
    """One tool call of a whole answer."""

    id: str
    function: WholeFunction
    type: Literal["function"] = "function"


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's turn."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[WholeToolCall, ...] | UnsetType = UNSET


class AnswerChoice(msgspec.Struct, frozen=True):
    """The one choice of a whole answer."""

    message: AnswerMessage
    finish_reason: FinishReason | None
    index: int = 0
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True):
    """A whole answer."""

    id: str
    created: int
    model: str
    choices: tuple[AnswerChoice, ...]
    usage: Usage | None | UnsetType = UNSET
    object: Literal["chat.completion"] = "chat.completion"


class ChunkStream:
    """Turns one generation into chunks: feed it deltas, send what it yields."""

    def __init__(self, request: RequestId, model: str, created_s: int, *, include_usage: bool) -> None:
        self._head = (f"chatcmpl-{request}", created_s, model)
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
            case TextDelta(text=text):
                yield from self._piece(ChunkDelta(content=text))
            case ReasoningDelta(text=text):
                yield from self._piece(ChunkDelta(reasoning_content=text, reasoning=text))
            case ToolCallDelta():
                yield from self._piece(ChunkDelta(tool_calls=(_tool_call_piece(delta),)))
            case Finished(reason=reason, usage=usage):
                yield from self._piece(ChunkDelta(), reason)
                if self._include_usage:
                    yield Chunk(*self._head, (), _usage(usage))
            case never:
                assert_never(never)

    def _piece(self, delta: ChunkDelta, reason: FinishReason | None = None) -> Iterator[Chunk]:
        if not self._begun:
            self._begun = True
            yield self._chunk(ChunkChoice(ChunkDelta(role="assistant", content="")))
        yield self._chunk(ChunkChoice(delta, reason))

    def _chunk(self, choice: ChunkChoice) -> Chunk:
        return Chunk(*self._head, (choice,), None if self._include_usage else UNSET)


def whole(chunks: Iterable[Chunk]) -> Completion:
    """Fold all chunks of one stream, usage included, into the answer that is not streamed."""
    chunks = tuple(chunks)
    last = chunks[-1]
    choices = tuple(choice for chunk in chunks for choice in chunk.choices)
    deltas = tuple(choice.delta for choice in choices)
    calls = _tool_calls(piece for delta in deltas for piece in delta.tool_calls or ())
    text = "".join(delta.content or "" for delta in deltas)
    thoughts = "".join(delta.reasoning or "" for delta in deltas) or UNSET
    message = AnswerMessage(
        text or (None if calls else ""), reasoning_content=thoughts, reasoning=thoughts, tool_calls=calls or UNSET
    )
    choice = AnswerChoice(message, choices[-1].finish_reason)
    return Completion(last.id, last.created, last.model, (choice,), last.usage)


def _tool_call_piece(delta: ToolCallDelta) -> ToolCallPiece:
    if delta.id is None:
        return ToolCallPiece(delta.index, FunctionPiece(delta.arguments))
    return ToolCallPiece(delta.index, FunctionPiece(delta.arguments, delta.name or ""), delta.id, "function")


def _tool_calls(pieces: Iterable[ToolCallPiece]) -> tuple[WholeToolCall, ...]:
    calls: dict[int, WholeToolCall] = {}
    for piece in pieces:
        before = calls.get(piece.index, WholeToolCall(piece.id or "", WholeFunction(piece.function.name or "", "")))
        function = WholeFunction(before.function.name, before.function.arguments + piece.function.arguments)
        calls[piece.index] = WholeToolCall(before.id, function)
    return tuple(calls[index] for index in sorted(calls))


def _usage(usage: generation.Usage) -> Usage:
    return Usage(
        usage.prompt_tokens,
        usage.output_tokens,
        usage.prompt_tokens + usage.output_tokens,
        CachedTokens(usage.cached_tokens),
        ReasoningTokens(usage.reasoning_tokens),
    )
