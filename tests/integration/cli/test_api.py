"""The CLI's side of the HTTP API, against a small server that says what each test wants to hear."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cortex_cli import api
from cortex_cli.answer import show_answer
from cortex_cli.bench import Plan, sweep
from cortex_cli.errors import CliError
from cortex_cli.ports import free_ports
from cortex_kit.http import serving


def piece(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


ROLE = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": null}\n\n'
END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"
FAILURE = b'data: {"error": {"message": "the node was lost", "code": "node_lost"}}\n\n'
GOOD = (b": loading weights 40%\n\n", ROLE, piece("Pa"), piece("r"), piece("is"), END, USAGE, DONE)


class Server:
    """Answers every request with `events`, or with `refusal`; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.events: tuple[bytes, ...] = GOOD
        self.refusal: Response | None = None
        self.most_at_once = 0
        self._at_once = 0

    async def chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        return self.refusal or StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        for event in self.events:
            await asyncio.sleep(0)
            yield event
        self._at_once -= 1


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[Route("/v1/chat/completions", server.chat, methods=["POST"])])
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(app, "127.0.0.1:0"))
        yield await stack.enter_async_context(api.client(f"http://127.0.0.1:{port}"))


async def happenings(http: httpx.AsyncClient) -> list[api.Happening]:
    return [happening async for happening in api.chat(http, {"model": "m"})]


async def test_an_answer_is_pieces_and_then_its_usage(server: Server, http: httpx.AsyncClient) -> None:
    seen = await happenings(http)

    assert seen == [
        api.Waiting("loading weights 40%"),
        *(api.Piece(text) for text in ("Pa", "r", "is")),
        api.Ended(api.Usage(9, 3)),
    ]
    assert server.asked == [{"model": "m", "stream": True, "stream_options": {"include_usage": True}}]


async def test_an_error_in_the_stream_is_an_error(server: Server, http: httpx.AsyncClient) -> None:
    server.events = (ROLE, piece("Pa"), FAILURE, DONE)

    with pytest.raises(CliError, match="the node was lost"):
        await happenings(http)


async def test_a_stream_that_breaks_off_is_no_answer(server: Server, http: httpx.AsyncClient) -> None:
    server.events = (ROLE, piece("Pa"))

    with pytest.raises(CliError, match="broke off"):
        await happenings(http)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (JSONResponse({"error": {"message": "no model 'x'"}}, 404), "no model 'x'"),
        (Response("<html>", 502), "HTTP 502"),
    ],
)
async def test_a_refusal_is_told_in_the_servers_own_words(
    server: Server, http: httpx.AsyncClient, refusal: Response, words: str
) -> None:
    server.refusal = refusal

    with pytest.raises(CliError, match=words):
        await happenings(http)


async def test_where_nobody_listens_the_user_is_told_what_to_start() -> None:
    (port,) = free_ports(1)

    with pytest.raises(CliError, match="Is cortex running"):
        async with api.client(f"http://127.0.0.1:{port}") as http:
            await api.models(http)


async def test_the_answer_goes_to_standard_output_and_nothing_else_does(
    http: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = await show_answer(http, {"model": "m"})

    assert capsys.readouterr().out == "Paris\n"
    assert (answer.text, answer.usage) == ("Paris", api.Usage(9, 3))
    assert answer.ttft_s > 0


async def test_a_sweep_keeps_as_many_streams_as_it_says(server: Server, http: httpx.AsyncClient) -> None:
    plan = Plan("m", max_tokens=3, prompt_tokens=40, requests=12, duration_s=None)

    report = await sweep(http, plan, (1, 4))

    assert [(one.concurrency, one.requests, one.errors) for one in report.levels] == [(1, 12, 0), (4, 12, 0)]
    assert [one.output_tokens for one in report.levels] == [36, 36]
    assert server.most_at_once == 4
    assert len(server.asked) == 25
    assert len({msgspec.json.encode(body) for body in server.asked}) == 25
    assert all(body["ignore_eos"] is True and body["max_tokens"] == 3 for body in server.asked)


async def test_a_sweep_tells_its_first_error(server: Server, http: httpx.AsyncClient) -> None:
    plan = Plan("m", max_tokens=3, prompt_tokens=40, requests=2, duration_s=None)
    server.events = (ROLE, piece("Pa"), DONE)

    with pytest.raises(CliError, match="without its usage"):
        await sweep(http, plan, (1,))
