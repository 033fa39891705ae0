"""The HTTP API as a client sees it: the models, and an answer as it arrives."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import msgspec

from cortex_cli.errors import CliError
from cortex_cli.sse import Comment, Data, Line, Lines

_PATIENCE = httpx.Timeout(10.0, read=60.0, pool=None)
"""The gateway gives a sign of life each second, so a minute without one means that it is gone."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The model is not ready yet; the gateway's own words."""

    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of the answer."""

    text: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens, as counted by the engine."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is whole."""

    usage: Usage


Happening = Waiting | Piece | Ended


class Location(msgspec.Struct, frozen=True):
    """Where a model is, and how it stands there."""

    node: str
    status: str


class ModelEntry(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`."""

    id: str
    locations: tuple[Location, ...] = ()
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[ModelEntry]


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _Error(msgspec.Struct, frozen=True):
    message: str


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: _Error | None = None


_DONE = Data(b"[DONE]")
_read_chunk = msgspec.json.Decoder(_Chunk).decode


@asynccontextmanager
async def client(endpoint: str) -> AsyncIterator[httpx.AsyncClient]:
    """Offer a client of the API at `endpoint`.

    Raises:
        CliError: nobody is there, or the connection broke.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    try:
        async with httpx.AsyncClient(
            base_url=endpoint,
            timeout=_PATIENCE,
            limits=limits,
            headers={"accept-encoding": "identity"},
            trust_env=False,
        ) as http:
            yield http
    except httpx.ConnectError as error:
        raise CliError(f"nobody answers at {endpoint}. Is cortex running? (`cortex up`)") from error
    except httpx.HTTPError as error:
        raise CliError(f"the connection to {endpoint} broke: {str(error) or type(error).__name__}") from error


async def models(http: httpx.AsyncClient) -> list[ModelEntry]:
    """Ask which models there are."""
    response = await http.get("/v1/models")
    _raise_for_error(response)
    return msgspec.json.decode(response.content, type=_Models).data


async def chat(http: httpx.AsyncClient, body: Mapping[str, object]) -> AsyncIterator[Happening]:
    """Ask for an answer and yield what happens, `Ended` last.

    Raises:
        CliError: the request was refused, or the answer ended in an error or broke off.
    """
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "/v1/chat/completions", json=request) as response:
        if not response.is_success:
            await response.aread()
            _raise_for_error(response)
        async for happening in _happenings(response):
            yield happening


async def _happenings(response: httpx.Response) -> AsyncIterator[Happening]:
    lines = Lines()
    async for part in response.aiter_raw():
        for line in lines.feed(part):
            if line == _DONE:
                return
            for happening in _understood(line):
                yield happening
    raise CliError("the answer broke off: the stream ended without [DONE]")


def _understood(line: Line) -> Iterator[Happening]:
    if isinstance(line, Comment):
        yield Waiting(line.text)
        return
    try:
        chunk = _read_chunk(line.payload)
    except msgspec.DecodeError as error:
        raise CliError(f"the API sent something that is no chunk of an answer: {error}") from error
    if chunk.error is not None:
        raise CliError(chunk.error.message)
    for choice in chunk.choices:
        if text := choice.delta.content or choice.delta.reasoning_content:
            yield Piece(text)
    if chunk.usage is not None:
        yield Ended(chunk.usage)


def _raise_for_error(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        error = msgspec.json.decode(response.content, type=_Chunk).error
    except msgspec.DecodeError:
        error = None
    raise CliError(error.message if error else f"HTTP {response.status_code} from {response.url}")
