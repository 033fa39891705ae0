"""What is written to the channel, seen from the channel."""

import asyncio
from collections.abc import AsyncGenerator

import httpx
import msgspec
from fastapi import FastAPI
from starlette.types import Message

from cortex_gateway.answer import ChatAnswer
from cortex_gateway.dialects.openai_answer import ChunkStream
from cortex_gateway.envelope import add_error_answers, identified
from cortex_gateway.generate import Note
from cortex_proto.errors import NodeLostError
from cortex_proto.generation import Delta, Finished, TextDelta, Timing, Usage
from cortex_proto.ids import RequestId

END = Finished("stop", Usage(1, 1), Timing(0, 0, 0), "digest")
Item = Delta | Note | Exception


async def written(*items: Item) -> list[Message]:
    """Return all that a stream of these items sends."""
    sent: list[Message] = []

    async def deltas() -> AsyncGenerator[Delta | Note, None]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    chunks = ChunkStream(RequestId("r"), "m", 7, include_usage=False)
    await ChatAnswer(deltas, chunks, {}, stream=True)({"type": "http"}, receive, send)
    return sent


async def test_each_write_is_one_whole_frame() -> None:
    start, *bodies, end = await written(TextDelta("a"), END)

    assert start["type"] == "http.response.start"
    assert all(b["body"].startswith(b"data: ") and b["body"].count(b"\n\n") == 1 for b in bodies)
    assert bodies[-1]["body"] == b"data: [DONE]\n\n"
    assert end == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_note_at_the_very_start_does_not_begin_the_answer() -> None:
    messages = await written(Note("loading"), TextDelta("a"), END)

    assert not any(m.get("body", b"").startswith(b":") for m in messages)


async def test_a_note_later_is_a_comment() -> None:
    messages = await written(TextDelta("a"), Note("keep-alive"), END)

    assert b": keep-alive\n\n" in [m.get("body") for m in messages]


async def test_an_error_later_is_the_last_event() -> None:
    *_, event, end = await written(TextDelta("a"), NodeLostError("gone"))

    error = msgspec.json.decode(event["body"].removeprefix(b"data: "))["error"]
    assert (error["code"], error["message"]) == ("node_lost", "gone")
    assert not end["more_body"]


async def test_a_bug_later_says_nothing_of_itself() -> None:
    *_, event, _ = await written(TextDelta("a"), KeyError("secret"))

    assert b"internal error" in event["body"]
    assert b"secret" not in event["body"]


async def test_a_bug_at_once_is_a_500_that_says_nothing_of_itself() -> None:
    app = FastAPI()
    add_error_answers(app)

    @app.get("/")
    async def broken() -> None:
        raise KeyError("secret")

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(identified(app)), base_url="http://x"
    ) as client:
        response = await client.get("/")

    assert response.status_code == 500
    assert response.json()["error"]["message"] == "internal error"
    assert "x-request-id" in response.headers
